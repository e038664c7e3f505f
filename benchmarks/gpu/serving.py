"""Part 2: what choosing a stitch costs, throughput beside the paper's Table 1, and the profile against a stop-watch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

import snnet
from benchmarks.gpu.clock import milliseconds, per_second
from benchmarks.gpu.part import Options, Report
from benchmarks.switching import ratio, times
from snnet.net.cuda_graphs import GraphedStitches
from snnet.profiling.profile import profile

TABLE_1 = {0: 2839, 28: 2352, 19: 1963, 10: 1673, 1: 1458, 62: 1060, 53: 828, 44: 679, 2: 577}
"""Images per second on an RTX 3090 in batches of 64, by stitch of DeiT-Ti/S/B (SN-Net, Table 1)."""
DEITS = 'deit_tiny,deit_small,deit_base'


def build(options: Options) -> snnet.StitchableNet:
    """DeiT-Ti/S/B with random weights, in eval mode on the device; two tiny transformers where all is tiny."""
    torch.manual_seed(0)
    if options.tiny:
        net = snnet.create_stitchable_net('test_vit,test_vit2', pretrained=False, img_size=32)
    else:
        net = snnet.create_stitchable_net(DEITS, pretrained=False)
    return net.eval().to(options.device)


def run(options: Options, report: Report) -> None:
    """Measures all of it."""
    net = build(options)
    device = torch.device(options.device)
    batches = (1, 2) if options.tiny else (1, 8, 64)
    listed = list(range(len(net.stitches)))[:: max(1, len(net.stitches) // 4)] if options.tiny else list(TABLE_1)
    with torch.inference_mode():
        for batch in batches:
            images = torch.randn(batch, *net.input_size, device=device)
            with report.trying(f'overhead at batch {batch}'):
                overhead(net, images, 5 if options.tiny else 30, report)
            with report.trying(f'switching at batch {batch}'):
                switching(net, images, listed, report)
        with report.trying('throughput'):
            throughput(net, listed, batches[-1], options, report)
        with report.trying('profile'):
            against_stopwatch(net, listed, batches[1], options, report)
        # last, because compiling may take the rest of the time
        if report.can_compile('compiled blocks', options.tiny):
            with report.trying('compiled blocks'):
                compiled(listed, batches[-1], options, report)


def overhead(net: snnet.StitchableNet, images: Tensor, rounds: int, report: Report) -> None:
    """An anchor through the net against timm's own network, calls in random order within each round."""
    for index in range(len(net.anchors)):
        model = net.anchor(index).model
        calls: dict[str, Callable[[], object]] = {
            'timm': partial(model, images),
            'again': partial(model, images),
            'net': partial(net, images, stitch=index),
        }
        found = times(calls, rounds, images.device)
        report.row(
            'Overhead of the net over the plain network (ratio, 95 % interval)',
            anchor=net.anchor(index).name, batch=len(images), timm_ms=statistics.median(found['timm']),
            net=ratio(found, 'net', 'timm'), timm_again=ratio(found, 'again', 'timm'),
        )  # fmt: skip


def switching(net: snnet.StitchableNet, images: Tensor, listed: Sequence[int], report: Report) -> None:
    """Another stitch at every call against the same one, plain and as CUDA graphs."""
    ways: dict[str, Callable[..., Tensor]] = {'plain': net}
    if images.device.type == 'cuda':
        with report.trying('CUDA graphs'):
            ways['CUDA graphs'] = GraphedStitches(net, images, listed, quiet=True)
    alone: list[float] = []
    for name, way in ways.items():
        calls = {str(i): partial(way, images, stitch=i) for i in listed}
        same = [milliseconds(call, images.device, 0.1) for call in calls.values()]
        mixed = [statistics.median(found) for found in times(calls, 10, images.device).values()]
        alone = alone or same
        report.row(
            f'Another stitch at every call ({len(listed)} stitches)',
            batch=len(images), way=name, smallest_ms=min(same), largest_ms=max(same), mean_ms=statistics.fmean(same),
            mean_ms_in_random_order=statistics.fmean(mixed),
            times_as_fast_as_plain=statistics.fmean(a / b for a, b in zip(alone, same, strict=True)),
        )  # fmt: skip


def throughput(net: snnet.StitchableNet, listed: Sequence[int], batch: int, options: Options, report: Report) -> None:
    """Images per second of some stitches, in float32, TF32 and bfloat16, and as CUDA graphs."""
    device = torch.device(options.device)
    images, half = torch.randn(batch, *net.input_size, device=device), torch.bfloat16
    rates: dict[str, dict[int, float]] = {}
    seconds = 0.05 if options.tiny else 0.3

    def measure(name: str, way: Callable[..., Tensor], x: Tensor, autocast: bool = False) -> None:
        with torch.autocast(device.type, half) if autocast else nullcontext():
            rates[name] = {i: per_second(partial(way, x, stitch=i), device, batch, seconds) for i in listed}

    measure('float32', net, images)
    with report.trying('TF32'):
        torch.set_float32_matmul_precision('high')
        try:
            measure('TF32', net, images)
        finally:
            torch.set_float32_matmul_precision('highest')
    measure('bf16 autocast', net, images, autocast=True)
    with report.trying('bfloat16 weights'):
        lean = build(options).to(half)
        measure('bf16', lean, images.to(half))
        if device.type == 'cuda':
            with report.trying('CUDA graphs in bfloat16'):
                measure('bf16 graphs', GraphedStitches(lean, images.to(half), listed, quiet=True), images.to(half))
    for i in listed:
        flops = net.records[i].flops or 0
        paper = {} if options.tiny else {'paper_RTX_3090': TABLE_1[i]}
        report.row(
            f'Images per second in batches of {batch}', stitch=i, legs=str(net.stitches[i]), GMACs=flops / 1e9, **paper,
            **{name: found[i] for name, found in rates.items()},
        )  # fmt: skip


def compiled(listed: Sequence[int], batch: int, options: Options, report: Report) -> None:
    """Images per second with blocks compiled one by one, against eager ones, in bfloat16."""
    device, half = torch.device(options.device), torch.bfloat16
    seconds = 0.05 if options.tiny else 0.3
    net = build(options).to(half)
    images = torch.randn(batch, *net.input_size, device=device, dtype=half)
    eager = {i: per_second(partial(net, images, stitch=i), device, batch, seconds) for i in listed}
    snnet.compile_blocks(net, 'inductor' if device.type == 'cuda' else 'eager')
    report.note('blocks are being compiled')  # what a cut part was busy with
    begin = time.monotonic()
    graphs = snnet.warm_up(net, images, quiet=True)
    report.note(f'{graphs} graphs compiled in {time.monotonic() - begin:.0f} s')
    with torch.compiler.set_stance('fail_on_recompile'):
        for i in listed:
            rate = per_second(partial(net, images, stitch=i), device, batch, seconds)
            report.row(
                f'Compiled blocks in bfloat16, images per second in batches of {batch}',
                stitch=i, eager=eager[i], compiled=rate, times_as_fast=rate / eager[i],
            )  # fmt: skip
    report.note('nothing was compiled after the warm-up')


def against_stopwatch(
    net: snnet.StitchableNet, listed: Sequence[int], batch: int, options: Options, report: Report
) -> None:
    """The profile's medians, measured and predicted, against plain loops over the same stitches."""
    net.records = [replace(r, top1=50 + (r.flops or 0) ** 0.1 + r.stitch * 37 % 11 / 11) for r in net.records]
    minutes = 0.05 if options.tiny else 0.2
    (table,) = profile(net, batches=[batch], stitches='frontier', minutes=minutes, quiet=True)
    images = torch.randn(batch, *net.input_size, device=options.device)
    apart: dict[str, list[float]] = {'measured': [], 'predicted': []}
    for i in sorted({*listed, *list(table.rows)[::6]}):
        ms = milliseconds(partial(net, images, stitch=i), images.device, 0.05 if options.tiny else 0.2, 7)
        apart['measured' if i in table.measured else 'predicted'].append(abs(table.rows[i].ms / ms - 1))
    for kind, errors in apart.items():
        if errors:
            mean, largest = 100 * statistics.fmean(errors), 100 * max(errors)
            report.row(
                f'The table of a profile (batch {batch}) against a stop-watch',
                stitches=f'{len(errors)} {kind}', mean_percent=mean, largest_percent=largest,
            )  # fmt: skip
