"""The steps of reassemble.py: a zoo and images in, ranked assemblies and the network of one of them out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from ..anchors.align_normalization import align_normalization
from ..anchors.anchor import Anchor
from ..anchors.boundary import Boundary
from ..anchors.flops import PartFlops, part_flops
from ..config.parse import to_yaml
from ..data.datasets import open_dataset
from ..data.unaugmented_images import drawn_images
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
from .assembly_tables import AssemblyTables, tabulate
from .candidate import Candidate
from .check_reassemble_settings import check_reassemble_settings
from .dynamic_program import DynamicProgram
from .fit_joins import initialize_joins
from .join_layer import join_costs
from .legs_text import parse_legs, unknown_network
from .network_builder import NetworkBuilder
from .new_head import new_head_costs
from .new_stem import new_stem_costs
from .partition import Partition, partition_zoo
from .plot import draw_assemblies, draw_partition, draw_similarity
from .ranking import rank_assemblies
from .reassemble_settings import ReassembleSettings
from .similarity import Similarity
from .training_command import training_command
from .zoo import check_zoo, line_sizes, weight_digests, with_random_weights
from .zoo_similarity import measure_similarity

_log = logging.getLogger(__name__)
_TRIES = 20
"""Assemblies built, at most, per one to be listed: some do not run, or miss the budget once built."""


class Search:
    """One run of reassemble.py; the output folder receives what it finds.

    Args:
        settings: of the run.

    Attributes:
        zoo: networks by the names that legs use.
        images: the data set, not decoded.

    Raises:
        SnnetError: settings, networks or images that cannot be used.
    """

    def __init__(self, settings: ReassembleSettings) -> None:
        check_reassemble_settings(settings)
        self.settings, self.output = settings, Path(settings.output)
        import_plugins(settings.plugin)
        with ranks(settings.device) as group:
            if group.world > 1:
                raise SnnetError(f'reassembling takes one process, not {group.world}: start it without torchrun')
            self.device = group.device
        set_up_logging()
        with seeded_libraries(key(settings.seed, 'zoo')):  # random weights, if none are loaded
            self.zoo = load_zoo(settings.zoo, pretrained=settings.pretrained, img_size=settings.img_size)
        self.anchors = [anchor.to(self.device).eval() for anchor in self.zoo.values()]
        if not settings.assembly.legs:
            check_zoo(self.anchors)
        align_normalization(self.anchors)
        self._first = create_stitchable_net(
            self.anchors[:1], pretrained=settings.pretrained, num_classes=self.anchors[0].num_classes
        )
        self.images = open_dataset(settings.data, settings.similarity.split, self._first, classes_matter=False)
        self._builder = NetworkBuilder(settings, self.zoo, self.images, self.device)
        self._digests = weight_digests(self.anchors)
        self._refuse_before_the_similarity()
        self.output.mkdir(parents=True, exist_ok=True)
        clear_temporaries(self.output)
        write_text(self.output / 'config.yaml', to_yaml(settings))

    def _refuse_before_the_similarity(self) -> None:
        """Refuses legs that do not run, lines that cannot be cut and missing heads, which is cheap to find out."""
        assembly, cutting = self.settings.assembly, self.settings.partition
        if assembly.legs:
            for leg in parse_legs(assembly.legs, self.zoo)[0]:
                if leg.anchor not in self.zoo:
                    raise CannotStitch(unknown_network(leg, leg.anchor, self.zoo))
            self._builder.costs(self._builder.build(assembly.legs)[1])
            return
        DynamicProgram(self._unmeasured, cutting.blocks, self.sizes, cutting.epsilon)
        if assembly.head == 'own' and not self._own_heads:
            wanted = 'a head' if assembly.num_classes is None else f'a head of {assembly.num_classes} classes'
            raise SnnetError(f"--head own: no network of the zoo has {wanted}; 'auto' and 'new' make one")
        headless = next((anchor.name for anchor in self.anchors if anchor.num_classes < 1), None)
        if headless and assembly.num_classes is None and assembly.head != 'own':
            raise SnnetError(f'{headless} has no head: give the number of classes of a new one with --num-classes')

    @cached_property
    def parts(self) -> dict[str, PartFlops]:
        """FLOPs of all parts of the networks."""
        return {anchor.name: part_flops(anchor) for anchor in self.anchors}

    @cached_property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The sizes that the partition limits."""
        return line_sizes(self.anchors, self.settings.partition.size, self.parts)

    def similarity(self) -> Similarity:
        """Similarity of all boundaries, measured now or by an earlier run with the same weights and images."""
        wanted = self.settings.similarity
        file = self.output / f'similarity-{self._fingerprint()}.safetensors'
        if file.is_file():
            _log.info('similarity: taken from %s', file)
            return Similarity.load(file)
        total = len(self.images)  # type: ignore[arg-type]  # a Dataset with a length
        if total < wanted.images:
            _log.warning('comparing with all %d images there are (%d were asked for)', total, wanted.images)
        count = min(total, wanted.images)
        progress = Progress(count, 'images for the similarity')
        batches = drawn_images(
            self.settings.data, self.images, self._first, count, self.settings.seed, self.device
        )  # fmt: skip
        found = measure_similarity(
            self.anchors, batches, pool=wanted.pool, estimator=wanted.estimator, progress=progress.update
        )
        progress.close()
        found.save(file)
        return found

    def partition(self, similarity: Similarity) -> Partition:
        """The blocks of every network."""
        cutting = self.settings.partition
        found = partition_zoo(
            similarity, cutting.blocks, self.sizes, epsilon=cutting.epsilon, sets=cutting.sets,
            method=cutting.method, seed=self.settings.seed,
        )  # fmt: skip
        for i, name in enumerate(found.networks):
            _log.info('%s is cut into %s', name, ' '.join(str(found.block(i, k)) for k in range(found.stages)))
        return found

    def candidates(self, similarity: Similarity, partition: Partition) -> list[Candidate]:
        """The best assemblies that can be built and keep the budget as networks, best first.

        Raises:
            BudgetInfeasible: there is none; the message names the assembly that misses the budget least.
        """
        wanted = self.settings.assembly
        ranking = rank_assemblies(
            self._tables(similarity, partition), flops=wanted.flops, params=wanted.params,
            count=_TRIES * wanted.count, networks=wanted.networks,
        )  # fmt: skip
        _log.info('%d assemblies fit the budget by their tables; building the best', ranking.feasible)
        progress = Progress(wanted.count, 'networks built')
        found: list[Candidate] = []
        failures: list[SnnetError] = []
        for assembly in ranking.assemblies:
            try:
                found.append(self._builder.candidate(assembly))
            except (CannotStitch, BudgetInfeasible) as error:
                failures.append(error)
                _log.warning('left out: %s', error)
                continue
            progress.update(1)
            if len(found) == wanted.count:
                break
        progress.close()
        if not found:
            raise _nearest(failures)
        if wanted.rank != 'similarity':
            found.sort(key=lambda candidate: candidate.ranked_by(wanted.rank), reverse=True)
        return found

    def _tables(self, similarity: Similarity, partition: Partition) -> AssemblyTables:
        wanted = self.settings.assembly
        return tabulate(
            partition, self.anchors, similarity, parts=self.parts, join=partial(join_costs, wanted.joins),
            stem=partial(new_stem_costs, self._first.input_size) if wanted.stem == 'new' else None,
            head=None if wanted.head == 'own' else self._new_head_costs,
            own_heads=[] if wanted.head == 'new' else self._own_heads,
        )  # fmt: skip

    @property
    def _own_heads(self) -> list[str]:
        """The networks whose head has the classes that were asked for."""
        classes = self.settings.assembly.num_classes
        return [a.name for a in self.anchors if a.num_classes > 0 and classes in (None, a.num_classes)]

    def _new_head_costs(self, anchor: Anchor, front: Boundary) -> tuple[int, int]:
        return new_head_costs(self.settings.assembly.num_classes or anchor.num_classes, front)

    def write(self, candidates: Sequence[Candidate]) -> Path:
        """Writes the list; returns the file."""
        lines = JsonLines(self.output / 'assemblies.jsonl')
        lines.rewrite([found.row(rank) for rank, found in enumerate(candidates)])
        return lines.path

    def pick(self, candidates: Sequence[Candidate]) -> str:
        """The legs of the candidate that was asked for with --pick.

        Raises:
            SnnetError: the list is shorter.
        """
        wanted = self.settings.assembly.pick
        if wanted >= len(candidates):
            raise SnnetError(f'--pick {wanted} was asked for, but the list ends with {len(candidates) - 1}')
        return candidates[wanted].network

    def finish(self, legs: str) -> Path:
        """Fits the joins of a network by least squares and saves it; returns the folder.

        With `random_weights` the network is built from untrained networks instead, and nothing is fitted.

        Args:
            legs: of the network, see `parse_legs`.

        Raises:
            BudgetInfeasible: the network misses the budget.
        """
        wanted = self.settings.assembly
        network, net = self._builder.build(legs)
        flops, params = self._builder.costs(net)
        _log.info('%s: %.4g GFLOPs, %.4g M parameters', network, flops / 1e9, params / 1e6)
        if wanted.random_weights:
            return self._save(self._random(legs), random=True)
        images = self._builder.images_for(net, wanted.init_samples)
        samples = sum(map(len, images))
        progress = Progress(samples * len(network.joins), 'images for least squares')
        fits = initialize_joins(network, self.zoo, images, samples, progress.update, ridge=wanted.init_ridge)
        progress.close()
        for fit, join in zip(fits, network.joins, strict=True):
            _log.info('join %d, %s: residual %.3f', fit.layer, join.extra_repr(), fit.residual)
        return self._save(net)

    def _random(self, legs: str) -> StitchableNet:
        """The network of these legs from untrained networks."""
        zoo = {
            name: anchor.to(self.device) for name, anchor in with_random_weights(self.zoo, self.settings.seed).items()
        }
        return NetworkBuilder(self.settings, zoo, self.images, self.device).build(legs)[1]

    def _save(self, net: StitchableNet, random: bool = False) -> Path:
        folder = self.output / ('net-random' if random else 'net')
        net.save_pretrained(folder)
        split = self.settings.similarity.split
        _log.info(
            'next: %s', training_command(folder, self.settings.data, split, self.images, self.settings.plugin, random)
        )
        return folder

    def draw(self, similarity: Similarity, partition: Partition, candidates: Sequence[Candidate]) -> list[Path]:
        """Draws similarity, partition and assemblies.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        assemblies = [found.assembly for found in candidates]
        drawn = draw_similarity(similarity, self.output / 'similarity', 'similarity of the features')
        drawn += draw_partition(partition, self.output / 'partition', f'J = {partition.objective:.2f}')
        return drawn + draw_assemblies(assemblies, partition, self.output / 'assemblies', 'assemblies')

    @property
    def _unmeasured(self) -> Similarity:
        """The boundaries of the zoo, before their similarity is measured."""
        boundaries = tuple((a.name, position) for a in self.anchors for position in range(len(a.boundaries)))
        return Similarity(boundaries, np.eye(len(boundaries)))

    def _fingerprint(self) -> str:
        """A digest of all that the similarity depends on."""
        data, wanted, images = self.settings.data, self.settings.similarity, self.images
        names = images.filenames() if hasattr(images, 'filenames') else (data.dataset, data.data_dir)
        how = (wanted.images, data.batch_size, wanted.pool, wanted.estimator, self.settings.seed)
        facts = (self._digests, self._unmeasured.boundaries, self._first.input_size, names, wanted.split, how)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _nearest(failures: Sequence[SnnetError]) -> SnnetError:
    """The error if no assembly could be used: of the one that misses the budget least, or else the first."""
    missed = [error for error in failures if isinstance(error, BudgetInfeasible)]
    first = missed[0] if missed else failures[0]
    return type(first)(
        f'none of the {len(failures)} best assemblies can be used; {first}',
        *((first.smallest,) if isinstance(first, BudgetInfeasible) else ()),
    )
