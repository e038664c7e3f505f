"""What reassemble.py does, step by step: a zoo and images in, ranked assemblies and the best one's network out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import reassembly
from ..anchors.flops import PartFlops, part_flops
from ..anchors.names import split_names
from ..anchors.normalization import align_normalization
from ..config.parse import to_yaml
from ..data.clean_images import drawn_images
from ..data.datasets import open_dataset
from ..errors import BudgetInfeasible, CannotStitch, SnnetError
from ..net.create import create_stitchable_net, load_zoo
from ..net.stitchable_net import StitchableNet
from ..utils.distributed import ranks
from ..utils.files import clear_temporaries, write_text
from ..utils.json_lines import JsonLines
from ..utils.log import set_up_logging
from ..utils.plugins import import_plugins
from ..utils.progress import Progress
from ..utils.seeds import key, seeded_libraries
from .assemble import Assembly
from .candidates import RANKS, Candidate
from .cka import ESTIMATORS
from .joins import KINDS, new_head_costs, new_stem_costs, seam_costs
from .network import HEADS, STEMS, Reassembled, ReassembledAnchor
from .partition import SETS, STARTS, Partition
from .partition_lines import Lines
from .reassemble_settings import ReassembleSettings
from .similarity import Similarity
from .zoo import SIZES, weight_digests

_log = logging.getLogger(__name__)
_TRIES = 20
"""So many assemblies are built at most for each one to be listed: some do not run, or miss the budget once built."""
_CODES = 2, 32
"""Batches and images a batch for NASWOT."""


class Workshop:
    """One run; the output folder receives what it finds.

    Args:
        settings: of the run.

    Raises:
        SnnetError: settings, networks or images that do not do.
    """

    def __init__(self, settings: ReassembleSettings) -> None:
        _check(settings)
        self.settings, self.output = settings, Path(settings.output)
        import_plugins(settings.plugin)
        with ranks(settings.device) as group:
            if group.world > 1:
                raise SnnetError(f'reassembling takes one process, not {group.world}: start it without torchrun')
            self.device = group.device
        set_up_logging()
        with seeded_libraries(key(settings.seed, 'zoo')):  # random weights, where none are loaded
            self.zoo = load_zoo(settings.zoo, pretrained=settings.pretrained, img_size=settings.img_size)
        self.anchors = [anchor.to(self.device).eval() for anchor in self.zoo.values()]
        reassembly.check_zoo(self.anchors)
        align_normalization(self.anchors)
        first = create_stitchable_net(self.anchors[:1], pretrained=settings.pretrained)
        self.images = open_dataset(settings.data, settings.split, first, classes_matter=False)
        self.first = first
        self._digests = weight_digests(self.anchors)
        Lines(self._blank, settings.blocks, self.sizes, settings.epsilon)  # refuses before the long part
        self.output.mkdir(parents=True, exist_ok=True)
        clear_temporaries(self.output)
        write_text(self.output / 'config.yaml', to_yaml(settings))

    @cached_property
    def parts(self) -> dict[str, PartFlops]:
        """FLOPs of all parts of the networks."""
        return {anchor.name: part_flops(anchor) for anchor in self.anchors}

    @cached_property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """What the partition limits."""
        return reassembly.line_sizes(self.anchors, self.settings.size, self.parts)

    def similarity(self) -> Similarity:
        """Similarity of all boundaries, measured now or by an earlier run with the same weights and images."""
        settings = self.settings
        file = self.output / f'similarity-{self._fingerprint()}.safetensors'
        if file.is_file():
            _log.info('similarity: taken from %s', file)
            return Similarity.load(file)
        total = len(self.images)  # type: ignore[arg-type]  # a Dataset with a length
        if total < settings.images:
            _log.warning('comparing with %d images, for there are no more (%d were asked for)', total, settings.images)
        count = min(total, settings.images)
        progress = Progress(count, 'images for the similarity')
        batches = drawn_images(settings.data, self.images, self.first, count, settings.seed, self.device)
        found = reassembly.measure_similarity(
            self.anchors, batches, pool=settings.pool, estimator=settings.estimator, progress=progress.update
        )
        progress.close()
        found.save(file)
        return found

    def partition(self, similarity: Similarity) -> Partition:
        """The blocks of every network."""
        settings = self.settings
        found = reassembly.partition_zoo(
            similarity, settings.blocks, self.sizes, epsilon=settings.epsilon, sets=settings.sets,
            method=settings.method, seed=settings.seed,
        )  # fmt: skip
        for i, name in enumerate(found.networks):
            _log.info('%s is cut into %s', name, ' '.join(str(found.block(i, k)) for k in range(found.stages)))
        return found

    def candidates(self, similarity: Similarity, partition: Partition) -> list[Candidate]:
        """The best assemblies that could be built and keep the budget as networks, from the best down.

        Raises:
            BudgetInfeasible: there is none; the message names the assembly that misses the budget least.
        """
        settings = self.settings
        tables = reassembly.tabulate(
            partition, self.anchors, similarity, parts=self.parts, seam=partial(seam_costs, settings.seams),
            stem=partial(new_stem_costs, self.first.input_size) if settings.stem == 'new' else None,
            head=partial(new_head_costs, self.anchors[0].num_classes) if settings.head == 'new' else None,
        )  # fmt: skip
        ranking = reassembly.rank_assemblies(
            tables, flops=settings.flops, params=settings.params, count=_TRIES * settings.count,
            networks=settings.networks,
        )  # fmt: skip
        _log.info('%d assemblies fit the budget by their tables; building the best', ranking.feasible)
        progress = Progress(settings.count, 'networks built')
        found: list[Candidate] = []
        failures: list[SnnetError] = []
        for assembly in ranking.assemblies:
            try:
                found.append(self._candidate(assembly))
            except (CannotStitch, BudgetInfeasible) as error:
                failures.append(error)
                _log.warning('left out: %s', error)
                continue
            progress.update(1)
            if len(found) == settings.count:
                break
        progress.close()
        if not found:
            raise _nearest(failures)
        if settings.rank != 'similarity':
            found.sort(key=lambda candidate: candidate.ranked_by(settings.rank), reverse=True)
        return found

    def write(self, candidates: Sequence[Candidate]) -> Path:
        """Writes the list; returns the file."""
        lines = JsonLines(self.output / 'assemblies.jsonl')
        lines.rewrite([found.row(place) for place, found in enumerate(candidates)])
        return lines.path

    def finish(self, chosen: Candidate) -> Path:
        """Fits the seams of an assembly by least squares and saves its network; returns the folder."""
        settings = self.settings
        network, net = self._build(chosen.assembly)
        images = self._held(net, settings.init_samples)
        samples = sum(map(len, images))
        progress = Progress(samples * len(network.seams), 'images for least squares')
        fits = reassembly.initialize_seams(
            network, self.zoo, images, samples, progress.update, ridge=settings.init_ridge
        )
        progress.close()
        for fit, seam in zip(fits, network.seams, strict=True):
            _log.info('seam %d, %s: residual %.3f', fit.layer, seam.extra_repr(), fit.residual)
        net.save_pretrained(self.output / 'net')
        _log.info('next: python train.py --anchors %s --freeze-anchors --data-dir IMAGES', self.output / 'net')
        return self.output / 'net'

    def draw(self, similarity: Similarity, partition: Partition, candidates: Sequence[Candidate]) -> list[Path]:
        """Pictures of all three.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        assemblies = [found.assembly for found in candidates]
        drawn = reassembly.draw_similarity(similarity, self.output / 'similarity', 'similarity of the features')
        drawn += reassembly.draw_partition(partition, self.output / 'partition', f'J = {partition.objective:.2f}')
        return drawn + reassembly.draw_assemblies(assemblies, partition, self.output / 'assemblies', 'assemblies')

    def _build(self, assembly: Assembly) -> tuple[Reassembled, StitchableNet]:
        settings = self.settings
        network = reassembly.reassemble(
            assembly.legs, self.zoo, stem=settings.stem, head=settings.head, seams=settings.seams,
            resample=settings.resample, seed=settings.seed,
        )  # fmt: skip
        return network, create_stitchable_net([ReassembledAnchor(network)], pretrained=True)

    def _candidate(self, assembly: Assembly) -> Candidate:
        network, net = self._build(assembly)
        record = net.records[0]
        assert record.flops is not None
        assert record.params is not None
        costs = {'flops': float(record.flops), 'params': float(record.params)}
        for name, value in costs.items():
            limit = getattr(self.settings, name)
            if limit is not None and value > limit:
                raise BudgetInfeasible(
                    f'{assembly} has {name} = {value:.6g} once built, {value / limit:.3g} times the budget', costs
                )
        codes = None
        if self.settings.rank != 'similarity':
            batches, size = _CODES
            images = torch.cat(self._held(net, batches * size))
            codes = reassembly.naswot_score(network, images.split(size) if len(images) == batches * size else [images])
        return Candidate(assembly, str(network), record.flops, record.params, codes)

    def _held(self, net: StitchableNet, count: int) -> list[Tensor]:
        """Images as a net takes them."""
        drawn = drawn_images(self.settings.data, self.images, net, count, self.settings.seed, self.device)
        return [images for images, _ in drawn]

    @property
    def _blank(self) -> Similarity:
        """Of the zoo, before it is measured."""
        places = tuple((a.name, position) for a in self.anchors for position in range(len(a.boundaries)))
        return Similarity(places, np.eye(len(places)))

    def _fingerprint(self) -> str:
        """Tells apart what the similarity depends on."""
        settings, images = self.settings, self.images
        names = images.filenames() if hasattr(images, 'filenames') else (settings.data.dataset, settings.data.data_dir)
        how = (settings.images, settings.data.batch_size, settings.pool, settings.estimator, settings.seed)
        facts = (self._digests, self._blank.boundaries, self.first.input_size, names, settings.split, how)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _check(settings: ReassembleSettings) -> None:
    """Refuses what can be refused before anything is loaded."""
    names = split_names(settings.zoo)
    if len(names) < 2:
        raise SnnetError(f'a zoo is at least two networks to take blocks from, --zoo names {len(names)}')
    for name, least in (('count', 1), ('init_samples', 1), ('batch_size', 1), ('images', 1)):
        if getattr(settings, name) < least:
            raise SnnetError(f'{name} is at least {least}, not {getattr(settings, name)}')
    for name, values in (
        ('rank', RANKS), ('estimator', ESTIMATORS), ('stem', STEMS), ('head', HEADS), ('seams', KINDS), ('size', SIZES),
        ('sets', SETS), ('method', STARTS),
    ):  # fmt: skip
        if getattr(settings, name) not in values:
            raise SnnetError(f"{name} is one of {', '.join(values)}, not '{getattr(settings, name)}'")
    least = ESTIMATORS[settings.estimator]
    for name in ('images', 'batch_size'):
        if getattr(settings, name) < least:
            given = getattr(settings, name)
            raise SnnetError(f'{settings.estimator} CKA compares at least {least} images at once, but {name}={given}')


def _nearest(failures: Sequence[SnnetError]) -> SnnetError:
    """What to say where no assembly could be used: the one that misses the budget least, or else the first reason."""
    missed = [error for error in failures if isinstance(error, BudgetInfeasible)]
    first = missed[0] if missed else failures[0]
    return type(first)(
        f'none of the {len(failures)} best assemblies will do; {first}',
        *((first.smallest,) if isinstance(first, BudgetInfeasible) else ()),
    )
