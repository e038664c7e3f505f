"""Saves a net as a folder, loads it again, and pushes it to the Hub.

config.json says how to build the net and what is known of it, model.safetensors holds the weights,
statistics.safetensors the BatchNorm statistics where they were recalibrated, own_parameters.safetensors the parameters
of single stitches where they were adapted, and config.json the SHA-256 of these files.
README.md is the model card. A repository on the Hugging Face Hub holds the same files.
"""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..anchors.class_names import checked_names
from ..anchors.new_head import mark_new_head
from ..budget.read_tables import read_tables
from ..budget.record import Record
from ..errors import SnnetError
from ..reparam import expect_biases, folded
from ..saving.anchor_rows import MAX_CLASSES, is_made_by_timm
from ..saving.config_json import NetConfig, parse_config, read_config, with_known
from ..saving.file_names import CONFIG, OWN, PROFILES, STATISTICS, WEIGHTS
from ..saving.hub import fetch_card, push_folder
from ..saving.model_card import write_card
from ..saving.rebuildable import check_weights, describe_rebuildable, with_classes
from ..saving.tensor_files import (
    common_dtype,
    load_into,
    read_tensors,
    refuse_infinite,
    write_tensors,
)
from ..stitching.stitch_layer import merged_state
from ..utils.files import check_new_folder, write_text
from ..utils.typed_json import TypedTable
from ..utils.whole_number import whole_number
from .measure_costs import measure_costs
from .measured_net import MeasuredNet
from .own_parameters import OwnParameters
from .preprocessing import timm_row
from .read_extras import read_own_parameters, read_statistics
from .stitch_statistics import Statistics

_log = logging.getLogger(__name__)
Net = TypeVar('Net', bound=MeasuredNet)


def save_net(net: MeasuredNet, folder: Path, license: str | None = None) -> None:
    """Writes the folder of a net (see `StitchableNet.save_pretrained`)."""
    if folder.exists() and not folder.is_dir():
        raise SnnetError(f"a net is saved as a folder, but '{folder}' is a file")
    check_new_folder(folder)
    known = net.known.verified(net, thorough=True)
    known.follow_modules(net)
    if not known.costs_hold:
        measure_costs(net)
    plain, statistics, own = folded(net), known.statistics, known.own
    tensors = _weights_of(plain)
    dtype = common_dtype(tensors)
    anchors = [describe_rebuildable(plain.anchor(i), dtype) for i in range(len(plain.anchors))]
    config = NetConfig(
        anchors, list(net.stitches), list(known.records), dtype=dtype, preprocessing=net.preprocessing,
        class_names=net.class_names or (), for_timm=timm_row(net), several_labels=net.several_labels,
    )  # fmt: skip
    parse_config(TypedTable(config.to_values(), 'the net is not saved: what would be its config.json'))
    refuse_infinite({**tensors, **(statistics.values if statistics else {}), **(own.tensors() if own else {})})
    hooked = [name for name, module in plain.anchors.named_modules() if module._forward_hooks]
    if hooked:
        _log.warning('forward hooks are not saved (anchors.%s has one): a net that is loaded runs without', hooked[0])
    folder.mkdir(parents=True, exist_ok=True)
    config.sha256 = {WEIGHTS: write_tensors(folder / WEIGHTS, tensors)}
    known.note_saved(net, config.sha256[WEIGHTS])
    _write_extras(folder, config, statistics, own)
    for name, extra in ((STATISTICS, statistics), (OWN, own)):
        if extra is None:
            (folder / name).unlink(missing_ok=True)  # of an earlier net
    write_card(folder, config.to_values(), config.records, license=license)


def load_net(kind: type[Net], folder: Path, num_classes: int | None = None) -> Net:
    """Builds the net of a folder (see `StitchableNet.from_pretrained`)."""
    num_classes = None if num_classes is None else whole_number('num_classes', num_classes)
    if num_classes is not None and not 0 <= num_classes <= MAX_CLASSES:
        raise SnnetError(f'a net has 0 (embeddings) to {MAX_CLASSES:,} classes, not num_classes={num_classes}')
    config = read_config(folder)
    tensors = read_tensors(folder / WEIGHTS, config.sha256.get(WEIGHTS))
    for i, row in enumerate(config.anchors):
        check_weights(row, tensors, f'anchors.{i}.model.', folder / WEIGHTS, config.dtype)
    rows = config.anchors
    if num_classes is not None and all(map(is_made_by_timm, rows)):
        rows = [with_classes(row, num_classes) for row in rows]
    random = num_classes is not None  # new classifiers
    net = kind([row.build(random) for row in rows], config.stitches).to(getattr(torch, config.dtype))
    net.preprocessing = config.preprocessing
    changed = _load_weights(net, tensors, folder / WEIGHTS, num_classes)
    net.eval()
    net.several_labels = config.several_labels and not (num_classes is not None and changed)
    if config.class_names and (num_classes is None or not changed):
        net.class_names = _names_of(config, net, folder)
    for name, told in ((STATISTICS, config.statistics), (OWN, config.own)):
        if told is None and name in config.sha256:
            _log.warning('%s is not used: %s says nothing of it but its SHA-256', folder / name, CONFIG)
    if config.statistics is not None:
        net.set_statistics(read_statistics(net, folder / STATISTICS, config))
    if config.own is not None and num_classes is not None and changed:
        _log.warning('%s is not loaded, because the classes are others: adapt again after training', folder / OWN)
    elif config.own is not None:
        net.set_own_parameters(read_own_parameters(net, folder / OWN, config))
    if num_classes is None or not changed:
        net.records = with_known(net.records, config.records)
        net.known.note_saved(net, config.sha256.get(WEIGHTS))
        _load_tables(net, folder / PROFILES)
    else:
        measure_costs(_with_new_classifiers(net, num_classes, folder))
        for i in range(len(net.anchors)):
            mark_new_head(net.anchor(i).model)
    return net


def push_net(net: MeasuredNet, repo_id: str, license: str | None, **options: Any) -> str:
    """Uploads the folder of a net (see `StitchableNet.push_to_hub`)."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        fetch_card(repo_id, folder, revision=options['revision'], token=options['token'])
        save_net(net, folder, license)
        config = read_config(folder)
        write_card(folder, config.to_values(), config.records, license=license, name=repo_id)
        (folder / PROFILES).mkdir()
        for table in net.latency_tables:
            write_text(folder / PROFILES / table.file_name, table.to_json())
        return push_folder(folder, repo_id, **options)


def write_records(folder: Path, records: list[Record]) -> None:
    """Puts what is known of the stitches into the folder of a saved net, and into its card if anything is new."""
    config = read_config(folder)
    before = config.to_values()['stitches']
    config.records = list(records)
    if config.to_values()['stitches'] != before:
        write_card(folder, config.to_values(), config.records)  # first: a stop between the two leaves news
    config.write(folder)


def write_preprocessing(folder: Path, changed: dict[str, Any]) -> None:
    """Puts how images are prepared for evaluation into the folder of a saved net."""
    config = read_config(folder)
    config.preprocessing = changed
    config.for_timm = {**config.for_timm, **changed}
    config.write(folder)


def write_statistics(folder: Path, statistics: Statistics) -> None:
    """Puts the BatchNorm statistics of the stitches into the folder of a saved net."""
    config = read_config(folder)
    _write_extras(folder, config, statistics, None)
    write_card(folder, config.to_values(), config.records)


def write_own_parameters(folder: Path, own: OwnParameters) -> None:
    """Puts the parameters of single stitches into the folder of a saved net."""
    config = read_config(folder)
    _write_extras(folder, config, None, own)
    write_card(folder, config.to_values(), config.records)


def _write_extras(folder: Path, config: NetConfig, statistics: Statistics | None, own: OwnParameters | None) -> None:
    """Writes config.json without what is new, the new files, and config.json with them: each stop on the way loads."""
    if statistics is not None:
        config.statistics = None
        config.sha256.pop(STATISTICS, None)
    if own is not None:
        config.own = None
        config.sha256.pop(OWN, None)
    config.write(folder)
    if statistics is not None:
        config.sha256[STATISTICS] = write_tensors(folder / STATISTICS, statistics.values)
        config.statistics = statistics.description()
    if own is not None:
        config.sha256[OWN] = write_tensors(
            folder / OWN, {name: tensor.clone() for name, tensor in own.tensors().items()}
        )
        config.own = own.description()
    if statistics is not None or own is not None:
        config.write(folder)


def _weights_of(net: MeasuredNet) -> dict[str, Tensor]:
    """The state dict of a net without what stitches have for themselves, which is in other files."""
    elsewhere = ('statistics.', 'own_parameters.')
    return {name: tensor for name, tensor in merged_state(net).items() if not name.startswith(elsewhere)}


def _load_weights(net: MeasuredNet, tensors: dict[str, Tensor], path: Path, num_classes: int | None) -> bool:
    """Loads the file of weights; with another number of classes, all but the classifiers.

    Returns:
        Whether classifiers have to be new.
    """
    expect_biases(net, tensors)
    own, new = _weights_of(net), set()
    if num_classes is not None:
        shapes = {name: (tensor.shape, own[name].shape) for name, tensor in tensors.items() if name in own}
        new = {
            name
            for name, (held, made) in shapes.items()
            if held != made and held[1:] == made[1:] and made[:1] == (num_classes,)
        }
        tensors = {name: tensor for name, tensor in tensors.items() if name not in new}
    load_into(net, own, tensors, path, new)
    for i in range(len(net.anchors)):
        net.anchor(i).clear_caches()
    return bool(new) or net.num_classes != num_classes


def _names_of(config: NetConfig, net: MeasuredNet, folder: Path) -> tuple[str, ...]:
    try:
        return checked_names(config.class_names, net.num_classes)
    except SnnetError as error:
        raise SnnetError(f'{folder / CONFIG} is damaged: {error}') from None


def _with_new_classifiers(net: Net, num_classes: int, folder: Path) -> Net:
    """Gives anchors that were built with the saved number of classes, such as reassembled ones, a new classifier."""
    for anchor in map(net.anchor, range(len(net.anchors))):
        if anchor.num_classes != num_classes:
            anchor.model.reset_classifier(num_classes)
            anchor.forget_survey()
    net.known.follow_modules(net)
    _log.warning('%s: the classifiers for %d classes are new and start with random weights', folder, num_classes)
    return net


def _load_tables(net: MeasuredNet, folder: Path) -> None:
    """Adds the latency tables in a folder, except those that were measured with other weights."""
    for path, table in read_tables(folder, len(net.stitches)).items():
        try:
            net.add_table(table)
        except SnnetError as error:
            _log.warning('%s is left out: %s', path, error)
