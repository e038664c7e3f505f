"""Refuses settings of reassemble.py that cannot work, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from ..anchors.names import split_names
from ..config.sections import check_ranges
from ..errors import SnnetError
from ..utils.files import check_new_folder
from .cka import ESTIMATORS
from .dynamic_program import check_blocks
from .ranking import budget_limit, check_networks
from .reassemble_settings import ReassembleSettings


def check_reassemble_settings(settings: ReassembleSettings) -> None:
    """Checks every setting that can be checked alone, or against the number of networks.

    Raises:
        SnnetError: a setting is out of range.
    """
    check_ranges(settings)
    check_new_folder(Path(settings.output))
    assembly = settings.assembly
    for name in ('flops', 'params'):
        budget_limit(name, getattr(assembly, name))
    names = split_names(settings.zoo)
    if assembly.legs:
        if not names:
            raise SnnetError('name the networks that --legs takes blocks from with --zoo')
        if assembly.pick:
            raise SnnetError(f'--legs names the network, so there is no list from which to --pick {assembly.pick}')
        return
    if len(names) < 2:
        raise SnnetError(f'a zoo needs at least two networks to take blocks from, --zoo names {len(names)}')
    smallest = ESTIMATORS[settings.similarity.estimator]
    for name, value in (('images', settings.similarity.images), ('batch_size', settings.data.batch_size)):
        if value < smallest:
            raise SnnetError(
                f'{settings.similarity.estimator} CKA compares at least {smallest} images at once, but {name}={value}'
            )
    if assembly.pick >= assembly.count:
        raise SnnetError(f'--pick {assembly.pick} is not in a list of --count {assembly.count}, which begins with 0')
    blocks = settings.partition.blocks
    long_enough = {f'network {i}': blocks + 1 for i in range(len(names))}  # the lines are not known yet
    check_blocks(long_enough, blocks, settings.partition.epsilon)
    check_networks(assembly.networks, blocks, len(names))
