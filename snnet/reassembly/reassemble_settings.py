"""The settings of reassemble.py."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.sections import option, section
from ..data.datasets import DataSettings
from .build_reassembled import HEADS, STEMS
from .candidate import RANKS
from .cka import ESTIMATORS
from .join_layer import KINDS
from .partition import SETS, STARTS
from .zoo import SIZES


@dataclass
class ComparedImages(DataSettings):
    """Where the compared images come from and how they are read."""

    batch_size: int = option(64, 'images that are compared with each other', least=1)


@dataclass
class SimilaritySettings:
    """How features are compared."""

    split: str = option('train', 'name of the split whose images are used; classes do not matter')
    images: int = option(512, 'images for the similarity', least=1)
    pool: bool = option(False, 'compare means over the grid instead of all features')
    estimator: str = option('unbiased', 'estimator of HSIC', choices=tuple(ESTIMATORS))


@dataclass
class PartitionSettings:
    """How networks are cut into blocks."""

    blocks: int = option(4, 'K, blocks of each network', least=2)
    epsilon: float = option(0.2, 'by which share a block may exceed the K-th part of its network', least=0)
    size: str = option('flops', 'measure of the size of a block', choices=SIZES)
    sets: str = option('stage', "equivalence sets: 'stage' puts block k of each network into set k", choices=SETS)
    method: str = option('alternating', "'published' is the algorithm of the paper", choices=tuple(STARTS))


@dataclass
class AssemblySettings:
    """Which assemblies are searched for, and how their networks are built."""

    flops: float | None = option(None, 'budget: multiply-adds per image at most')
    params: float | None = option(None, 'budget: parameters at most')
    networks: int = option(2, 'networks that an assembly takes blocks from, at least', least=1)
    count: int = option(10, 'assemblies to list', least=1)
    pick: int = option(0, 'number in that list of the assembly to save', least=0)
    rank: str = option('similarity', 'score to rank the list by', choices=RANKS)
    legs: str = option('', "save this network instead of searching, as in 'resnet50[:layer2.0] > swin_tiny[4:]'")
    num_classes: int | None = option(None, 'classes of the new network (default: those of its last network)', least=1)
    stem: str = option('own', "'own' (of the first block's network) or 'new'", choices=STEMS)
    head: str = option('auto', "'own' (of the last block's network), 'new', or 'auto': own if possible", choices=HEADS)
    joins: str = option('plain', "'plain' (map) or 'published' (norm, map, LeakyReLU)", choices=KINDS)
    resample: bool = option(True, 'give every block the grid that it has in its own network')
    random_weights: bool = option(False, 'save the same network with random weights, in net-random')
    init_samples: int = option(100, 'images for least squares', least=1)
    init_ridge: float = option(0.0, 'least squares: ridge, as a share of the variance of a channel', least=0)


@dataclass
class ReassembleSettings:
    """Settings of reassemble.py."""

    zoo: str = option('', 'networks to take blocks from, separated by commas: NAME, NAME=FILE or FOLDER')
    output: str = option('output/reassemble', 'folder for the net, the list of assemblies and pictures')
    seed: int = option(0, 'of every random choice')
    plugin: list[str] = option([], 'Python files that register networks and adapters', free=True)
    device: str = option('', 'cpu or cuda (default: a GPU if there is one)', free=True)
    pretrained: bool = option(True, 'load weights (NAME=FILE always does)')
    img_size: int | None = option(None, 'pixels per side (default: those of the weights, if all agree)', least=1)
    data: ComparedImages = section(ComparedImages)
    similarity: SimilaritySettings = section(SimilaritySettings)
    partition: PartitionSettings = section(PartitionSettings)
    assembly: AssemblySettings = section(AssemblySettings)
