"""Does reassembly find good networks, and does its surrogate predict them? One experiment on any small zoo.

    python examples/reassemble_zoo.py NAME=FILE,NAME=FILE,... --plugin examples/cifar10_resnet.py \
        --data-dir output/cifar10/images --budgets 5e7 7.5e7 1e8

Under every budget: the best assembly of our partition, of the published algorithm's, and of random partitions, and the
best whole network that fits, all trained alike (joins and head alone). Then assemblies drawn at random within no
budget: how well does each score, known before training, rank their accuracies? One JSON line a network as it comes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import snnet
from snnet import reassembly
from snnet.anchors.anchor import Anchor
from snnet.config.parse import parse
from snnet.config.sections import option, section
from snnet.data.datasets import DataSettings, open_dataset
from snnet.data.unaugmented_images import clean_loader
from snnet.errors import BudgetInfeasible, SnnetError
from snnet.net.create import load_zoo
from snnet.reassembly.dynamic_program import DynamicProgram
from snnet.utils.eval_mode import eval_mode
from snnet.utils.json_lines import JsonLines
from snnet.utils.log import set_up_logging
from snnet.utils.plugins import import_plugins
from snnet.utils.seeds import generator, key


@dataclass
class ExperimentImages(DataSettings):
    """Where images come from and how they are read."""

    batch_size: int = option(50, 'images per step', least=1)
    workers: int = option(0, 'processes that load images', least=0)


@dataclass
class Experiment:
    """Settings of the experiment."""

    zoo: str = option('', 'networks, separated by commas')
    output: str = option('output/reassemble_zoo', 'folder for results.jsonl, similarity.safetensors and pictures')
    img_size: int | None = option(None, 'pixels a side')
    data: ExperimentImages = section(ExperimentImages)
    plugin: list[str] = option([], 'Python files that register networks and adapters')
    blocks: int = option(4, 'K, blocks of each network')
    epsilon: float = option(0.5, 'how much larger than the K-th part of its network a block may nearly be')
    budgets: list[float] = option([], 'FLOPs')
    drawn: int = option(20, 'assemblies drawn at random')
    partitions: int = option(3, 'random partitions')
    measured: int = option(256, 'training images for the similarity')
    fitted: int = option(100, 'training images for least squares')
    trained: int = option(1000, 'training images')
    epochs: int = option(2, 'passes over them')
    joins: str = option('plain', 'plain or published')
    lr: float = option(1e-3, 'learning rate of AdamW, with cosine to nothing')


SCORES = {'score': 1, 'residual': -1, 'naswot': 1, 'naswot_normalized': 1, 'flops': 1, 'before': 1}
"""What is known before training, and whether more or less of it is better."""

Images = tuple[Tensor, Tensor]


class Bench:
    """What every network of the experiment goes through.

    Args:
        settings: of the experiment.
        zoo: the networks.
        train, test: images (N, C, H, W) and classes (N,).
    """

    def __init__(self, settings: Experiment, zoo: Mapping[str, Anchor], train: Images, test: Images) -> None:
        self.settings, self.zoo, self.train, self.test = settings, zoo, train, test
        self.rows = JsonLines(Path(settings.output) / 'results.jsonl')
        self.done = {(row['group'], row['network']): row for row in self.rows.read()}

    def run(self, group: str, legs: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Fits, scores, trains and tests a network, or takes the results of an earlier run."""
        if (group, legs) in self.done:
            return self.done[group, legs]
        same = next((row for (_, network), row in self.done.items() if network == legs), None)
        row = {**(same or self._measured(legs)), 'group': group, **facts}
        self.rows.append(row)
        self.done[group, legs] = row
        print({name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}, flush=True)
        return row

    def _measured(self, legs: str) -> dict[str, Any]:
        images, settings, begin = self.train[0], self.settings, time.monotonic()
        net = reassembly.reassemble(legs, self.zoo, joins=settings.joins)
        code = reassembly.naswot_score(net, images[:128].split(64))
        fits = reassembly.initialize_joins(net, self.zoo, [images[: settings.fitted]], settings.fitted)
        whole = snnet.create_stitchable_net([reassembly.ReassembledAnchor(net)], pretrained=True)
        row = {
            'network': legs, 'flops': whole.records[0].flops, 'params': whole.records[0].params,
            'naswot': code.plain, 'naswot_normalized': code.normalized,
            'residual': float(np.mean([fit.residual for fit in fits])) if fits else 0.0, 'before': self.accuracy(net),
        }  # fmt: skip
        row['loss'] = self.tune(net)
        row['after'] = self.accuracy(net)
        row['seconds'] = time.monotonic() - begin
        return row

    def tune(self, net: reassembly.Reassembled) -> float:
        """Frozen-tuning on mirrored images; returns the mean loss of the last epoch."""
        settings, (images, classes) = self.settings, self.train
        net.freeze_blocks().train()
        moving = [p for p in net.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(moving, lr=settings.lr, weight_decay=0.0)
        steps = settings.trained // settings.data.batch_size
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps * settings.epochs))
        losses: list[float] = []
        for epoch in range(settings.epochs):
            draw = generator(0, 'order', epoch)
            order = torch.randperm(settings.trained, generator=draw)
            losses = []
            for batch in order.split(settings.data.batch_size)[:steps]:
                mirrored = torch.rand(len(batch), 1, 1, 1, generator=draw) < 0.5
                x = torch.where(mirrored, images[batch].flip(3), images[batch])
                loss = F.cross_entropy(net(x), classes[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(float(loss.detach()))
        return float(np.mean(losses)) if losses else float('nan')

    @torch.no_grad()
    def accuracy(self, net: torch.nn.Module) -> float:
        """Top-1 on the test images, in percent."""
        with eval_mode(net):
            hits = [net(x).argmax(1) == y for x, y in zip(*(part.split(100) for part in self.test), strict=True)]
        return 100 * float(torch.cat(hits).float().mean())


def random_partition(ours: reassembly.Partition, program: DynamicProgram, seed: int) -> reassembly.Partition:
    """Cuts drawn uniformly among those that keep the size limit; block k of every network in set k."""
    random = np.random.default_rng(key(seed, 'random partition'))
    cuts = []
    for first, last in zip(program.first.tolist(), program.last.tolist(), strict=True):
        while True:
            inner = random.choice(np.arange(first + 1, last), ours.stages - 1, replace=False)
            drawn = [first, *sorted(inner.tolist()), last]
            if all(pair in program.allowed for pair in pairwise(drawn)):
                break
        cuts.append(tuple(cut - first for cut in drawn))
    sets = (tuple(range(ours.stages)),) * len(cuts)
    return reassembly.Partition(ours.networks, tuple(cuts), sets, ours.centers, float('nan'))


def read_images(settings: Experiment, split: str, like: Anchor, count: int | None) -> Images:
    """Images of a split, prepared as for the first network: `count` drawn at random, or all."""
    net = snnet.create_stitchable_net([like], pretrained=True)
    dataset = open_dataset(settings.data, split, net)
    total = len(dataset)  # type: ignore[arg-type]  # a Dataset with a length
    order = torch.randperm(total, generator=generator(0, split)).tolist()[:count]
    images, classes = zip(*clean_loader(settings.data, dataset, net, order, 100), strict=True)
    return torch.cat(images), torch.cat(classes)


def kendall(scores: Sequence[float], accuracies: Sequence[float]) -> tuple[float, float]:
    """Kendall's tau-b, and its standard error by leaving each network out in turn (the jackknife)."""
    pairs = np.array([scores, accuracies], dtype=np.float64)

    def tau(table: np.ndarray) -> float:
        signs = np.sign(table[:, :, None] - table[:, None, :])
        same, *ties = (signs[0] * signs[1]).sum(), (signs[0] ** 2).sum(), (signs[1] ** 2).sum()
        return float(same / np.sqrt(ties[0] * ties[1])) if all(ties) else 0.0

    left_out = np.array([tau(np.delete(pairs, i, 1)) for i in range(len(scores))])
    error = np.sqrt((len(scores) - 1) * np.mean((left_out - left_out.mean()) ** 2))
    return tau(pairs), float(error)


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws accuracy after training over FLOPs and over the surrogate's score."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout='constrained')
    left, right = figure.subplots(1, 2, sharey=True)
    for group, color in (('network', 'C0'), ('ours', 'C3'), ('random', 'C2'), ('drawn', 'C7')):
        some = [row for row in rows if row['group'].split()[0] == group]
        left.scatter([row['flops'] / 1e6 for row in some], [row['after'] for row in some], 18, color, label=group)
        if group == 'drawn':
            right.scatter([row['score'] for row in some], [row['after'] for row in some], 18, color)
    left.set(xlabel='MFLOPs', ylabel='top-1 after frozen-tuning')
    left.legend()
    right.set(xlabel="the surrogate's score, of those drawn at random")
    figure.savefig(path)


def main(settings: Experiment) -> None:
    """Runs what earlier runs have not done."""
    import_plugins(settings.plugin)
    set_up_logging()
    output = Path(settings.output)
    output.mkdir(parents=True, exist_ok=True)
    zoo = load_zoo(settings.zoo, pretrained=True, img_size=settings.img_size)
    for short, anchor in zip([name.partition('=')[0] for name in zoo], zoo.values(), strict=True):
        anchor.name = short
    zoo = {anchor.name: anchor.eval() for anchor in zoo.values()}
    anchors = list(zoo.values())
    train = read_images(settings, 'train', anchors[0], max(settings.trained, settings.measured, settings.fitted))
    bench = Bench(settings, zoo, train, read_images(settings, 'validation', anchors[0], None))

    begin = time.monotonic()
    similarity = reassembly.measure_similarity(anchors, train[0][: settings.measured].split(64))
    print(f'similarity of {len(similarity.boundaries)} boundaries: {time.monotonic() - begin:.1f} s', flush=True)
    sizes = reassembly.line_sizes(anchors)
    options: dict[str, Any] = {'epsilon': settings.epsilon, 'sets': 'stage'}
    ours = reassembly.partition_zoo(similarity, settings.blocks, sizes, **options)
    published = reassembly.partition_zoo(similarity, settings.blocks, sizes, method='published', **options)
    print(f'J: ours {ours.objective:.4f}, published {published.objective:.4f}; cuts {ours.cuts}, {published.cuts}')
    program = DynamicProgram(similarity, settings.blocks, sizes, settings.epsilon)
    ways = {'ours': ours, 'published': published}
    ways |= {f'random {seed}': random_partition(ours, program, seed) for seed in range(settings.partitions)}
    similarity.save(output / 'similarity.safetensors')
    reassembly.draw_similarity(similarity, output / 'similarity')
    reassembly.draw_partition(ours, output / 'partition')

    tables = {name: reassembly.tabulate(way, anchors, similarity) for name, way in ways.items()}
    for name in zoo:
        bench.run('network', f'{name}[:]', {})
    for budget in settings.budgets:
        for name, table in tables.items():
            try:
                best = reassembly.rank_assemblies(table, flops=budget, count=1).assemblies[0]
            except BudgetInfeasible as error:
                print(f'{name}: {error}', flush=True)
                continue
            bench.run(f'{name} {budget:g}', str(best), {'score': best.score})
    everything = reassembly.rank_assemblies(tables['ours'], count=10**6).assemblies
    chosen = torch.randperm(len(everything), generator=generator(0, 'drawn')).tolist()[: settings.drawn]
    rows = [bench.run('drawn', str(everything[i]), {'score': everything[i].score}) for i in chosen]
    draw(bench.rows.read(), output / 'accuracy.svg')
    for score, sign in SCORES.items():
        for when in ('before', 'after'):
            tau, spread = kendall([sign * row[score] for row in rows], [row[when] for row in rows])
            print(f'{score:>18}, accuracy {when:>6}: tau {tau:+.2f} +- {spread:.2f}')


if __name__ == '__main__':
    try:
        main(parse(Experiment))
    except SnnetError as error:
        sys.exit(f'reassemble_zoo.py: {error}')
