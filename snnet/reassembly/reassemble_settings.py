"""The settings of reassemble.py."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.sections import option, section
from ..data.datasets import DataSettings


@dataclass
class ComparedImages(DataSettings):
    """Where the compared images come from and how they are read."""

    batch_size: int = option(64, 'images that are compared with each other', least=1)


@dataclass
class ReassembleSettings:
    """Settings of reassemble.py."""

    zoo: str = option('', 'networks to take blocks from, separated by commas: NAME, NAME=FILE or FOLDER')
    output: str = option('output/reassemble', 'folder for the net, the list of assemblies and pictures')
    seed: int = option(0, 'of every random choice')
    plugin: list[str] = option([], 'Python files that register networks and adapters', free=True)
    device: str = option('', 'cpu or cuda (default: a GPU where there is one)', free=True)
    data: ComparedImages = section(ComparedImages)
    pretrained: bool = option(True, 'load weights (NAME=FILE always does)')
    img_size: int | None = option(None, 'pixels a side (default: those of the weights, if all agree)')
    flops: float | None = option(None, 'budget: multiply-adds an image at most')
    params: float | None = option(None, 'budget: parameters at most')
    # similarity
    split: str = option('train', 'name of the split whose images are used; classes do not matter')
    images: int = option(512, 'images for the similarity')
    pool: bool = option(False, 'compare means over the grid in place of all features')
    estimator: str = option('unbiased', 'of HSIC: unbiased or published')
    # partition
    blocks: int = option(4, 'K, blocks of each network')
    epsilon: float = option(0.2, 'how much larger than the K-th part of its network a block may nearly be')
    size: str = option('flops', 'what the size of a block is measured in: flops, nodes or params')
    sets: str = option('stage', "equivalence sets: 'stage' (block k of each network in set k) or 'free'")
    method: str = option('alternating', 'alternating, or published for the algorithm of the paper')
    # assemblies
    networks: int = option(2, 'networks that an assembly takes blocks from, at least')
    count: int = option(10, 'assemblies to list')
    rank: str = option('similarity', 'what the list is ranked by: similarity, or naswot or naswot_plain of its best')
    stem: str = option('own', "'own' (of the first block's network) or 'new'")
    head: str = option('auto', "'own' (of the last block's network), 'new', or 'auto': its own where that is possible")
    seams: str = option('plain', "stitch layers: 'plain' (map) or 'published' (norm, map, LeakyReLU)")
    resample: bool = option(True, 'give every block the grid that it has in its own network')
    init_samples: int = option(100, 'images for least squares')
    init_ridge: float = option(0.0, 'least squares: ridge, as a share of the variance of a channel')
