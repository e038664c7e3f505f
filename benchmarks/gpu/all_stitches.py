"""Part 4: all stitches on the same images, pass by pass and as a tree, and least squares against the published way."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

import snnet
from benchmarks.evaluate import shared_flops
from benchmarks.gpu.clock import forget_peak, peak_gigabytes, took
from benchmarks.gpu.part import Options, Report
from benchmarks.gpu.serving import build
from benchmarks.initialize import forward_alone, straightforward
from snnet.calibration.initialize import initialize
from snnet.net.shared_prefixes import all_logits


def run(options: Options, report: Report) -> None:
    """Measures both."""
    net, device = build(options), torch.device(options.device)
    single, shared = sum(record.flops or 0 for record in net.records), shared_flops(net)
    report.note(
        f'{len(net.stitches)} stitches: {single / 1e9:.4g} GMACs per image one by one, {shared / 1e9:.4g} shared, so '
        f'sharing allows {single / shared:.2f} times as fast'
    )
    squares(net, ours, options, report)
    sizes = ((4, 2), (8, 4)) if options.tiny else ((32, 8), (2000, 100))
    for count, batch in sizes:
        images = torch.randn(count, *net.input_size, device=device)
        with report.trying(f'evaluation in batches of {batch}'):
            evaluate(net, images, batch, report)
        del images
    squares(net, published, options, report)  # the pseudo-inverses may take the rest of the time


def squares(net: snnet.StitchableNet, way: Callable[..., None], options: Options, report: Report) -> None:
    """Least squares from 100 and 1,000 images."""
    for count in (8, 16) if options.tiny else (100, 1000):
        with report.trying(f'{way.__name__}: least squares from {count} images'):
            way(net, torch.randn(count, *net.input_size, device=torch.device(options.device)), report)


@torch.inference_mode()
def evaluate(net: snnet.StitchableNet, images: Tensor, batch: int, report: Report) -> None:
    """One pass a stitch, the tree of shared parts, and the tree with merged suffixes, in bfloat16."""
    device, ids, parts = images.device, range(len(net.stitches)), images.split(batch)

    def passes(parts: tuple[Tensor, ...] = parts) -> list[dict[int, Tensor]]:
        return [{i: net(x, stitch=i) for i in ids} for x in parts]

    def tree(most: int, parts: tuple[Tensor, ...] = parts) -> list[dict[int, Tensor]]:
        return [dict(all_logits(net, x, ids, most)) for x in parts]

    half = torch.autocast(device.type, torch.bfloat16) if device.type == 'cuda' else nullcontext()
    with half:
        alone = passes(parts[:1])[0]
        ways = {'one pass per stitch': None, 'shared parts': 0, 'shared parts, suffixes merged up to 512': 512}
        base = 0.0
        for name, most in ways.items():
            first = alone if most is None else tree(most, parts[:1])[0]  # and warm
            worst = max(float((first[i] - alone[i]).abs().max()) for i in ids)
            forget_peak(device)
            seconds = took(passes if most is None else lambda most=most: tree(most), device)  # type: ignore[misc]
            base = base or seconds
            report.row(
                f'All {len(ids)} stitches on {len(images)} images',
                batch=batch, way=name, seconds=seconds, images_per_s=len(images) / seconds,
                times_as_fast=base / seconds, largest_difference=worst, peak_GB=peak_gigabytes(device),
            )  # fmt: skip


def ours(net: snnet.StitchableNet, images: Tensor, report: Report) -> None:
    """Least squares from float64 sums, and its bound, the forward passes alone."""
    device, table = images.device, title(net, images)
    initialize(net, [images[:4]], samples=4)  # warm
    bound = took(lambda: forward_alone(net, images), device)
    report.row(table, way='the forward passes alone', seconds=bound)
    forget_peak(device)
    fits = []
    seconds = took(lambda: fits.extend(initialize(net, [images], samples=len(images))), device)
    report.row(
        table, way='ours: float64 sums', seconds=seconds, times_the_forward_passes=seconds / bound,
        peak_GB=peak_gigabytes(device), unexplained=statistics.fmean(fit.residual for fit in fits),
    )  # fmt: skip


def published(net: snnet.StitchableNet, images: Tensor, report: Report) -> None:
    """Float32 `pinv` for every position, or for as many as half of the time that is left allows."""
    forget_peak(images.device)
    solved: list[tuple[int, int]] = []
    limit = report.seconds_left / 2
    seconds = took(lambda: solved.append(straightforward(net, images, limit)), images.device)
    peak = peak_gigabytes(images.device)
    (done, every) = solved[0]
    report.row(
        title(net, images), way='published: float32 pinv', seconds=seconds, peak_GB=peak,
        positions_solved=f'{done} of {every}',
    )  # fmt: skip


def title(net: snnet.StitchableNet, images: Tensor) -> str:
    """Of the table."""
    return f'Least squares of all {len(net.stitch_layers)} stitch layers from {len(images)} images'
