"""A folder from a stranger: whatever it holds, it loads or is refused in a sentence, and no other file is touched."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import struct
import time

import pytest
import torch
from safetensors.torch import load, load_file, save, save_file

import snnet
from snnet import LatencyTable, NoWeights, SnnetError, StitchableNet
from snnet.net.own_parameters import OwnParameters, names_behind
from snnet.net.read_extras import read_own_parameters, read_statistics
from snnet.saving.config_json import read_config
from snnet.saving.file_names import OWN, STATISTICS, WEIGHTS
from snnet.saving.tensor_files import read_tensors, refuse_misfits
from tests.helpers.families import family_net, images
from tests.helpers.mutations import JUNK, folder_in_memory, is_refused, mutated, nothing_outside

FIELDS = [*JUNK[:-6], 'F64', 'I64', 'BF16', 'F8_E4M3', [2**62, 2], [0, 2**63]]
NAMES = ['alien', '', '../x', '3', '007.x', '-1.x', '1e3.x', '٣.x', '9' * 5000 + '.x', '0.0', '0.-1.x']


def with_extras(name):
    """A net whose stitches have parameters and, where there are BatchNorms, statistics for themselves."""
    net = family_net(name)
    stitch = len(net.stitches) - 1
    if name == 'resnet':
        snnet.recalibrate(net, [images(64, 8)], samples=8, shares=[0.5], stitches=[0, stitch - 1])
    held = {name: p.detach() for name, p in net.named_parameters() if p.ndim < 2}
    behind = frozenset().union(*names_behind(net, stitch))
    net.set_own_parameters(OwnParameters(net, {stitch: {name: held[name] + 1 for name in held.keys() & behind}}))
    return net


@pytest.fixture(scope='module')
def nets():
    return {name: with_extras(name) for name in ('vit', 'resnet')}


@pytest.fixture(scope='module')
def saved(nets, tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp(name) for name in nets}
    for name, folder in folders.items():
        nets[name].save_pretrained(folder)
        config = json.loads((folder / 'config.json').read_text())
        del config['sha256']  # a forged folder would have forged sums, too
        (folder / 'config.json').write_text(json.dumps(config))
    return folders


@pytest.fixture
def copied(saved):
    with folder_in_memory() as parent:
        for name, folder in saved.items():
            shutil.copytree(folder, parent / name)
        yield parent


@pytest.fixture
def folder(saved, tmp_path):
    shutil.copytree(saved['vit'], tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize(
    ('name', 'count', 'loads'),
    [
        ('vit', 150, 3),
        ('resnet', 50, 0),
        pytest.param('vit', 1600, 12, marks=pytest.mark.slow),
        pytest.param('resnet', 800, 3, marks=pytest.mark.slow),
    ],
)
def test_mutated_configs_load_or_are_refused_in_a_sentence(nets, copied, name, count, loads):
    """Of the folders whose config is accepted, the first are loaded as a whole, and of all what stitches have."""
    folder, rng, refused, accepted = copied / name, random.Random(0), 0, 0
    config = json.loads((folder / 'config.json').read_text())
    with nothing_outside(folder):
        for _ in range(count):
            (folder / 'config.json').write_bytes(mutated(config, rng))
            if is_refused(lambda: read_config(folder)):
                refused += 1
                continue
            accepted += 1
            is_refused(lambda: read_extras(nets[name], folder))
            if accepted <= loads:
                is_refused(lambda: StitchableNet.from_pretrained(folder))
    assert refused > count / 2
    assert accepted > loads


def read_extras(net, folder):
    config = read_config(folder)
    if config.own is not None:
        read_own_parameters(net, folder / OWN, config)
    if config.statistics is not None:
        read_statistics(net, folder / STATISTICS, config)


def with_header(data, change):
    """A safetensors file with another header."""
    (length,) = struct.unpack('<Q', data[:8])
    header = change(json.loads(data[8 : 8 + length]))
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack('<Q', len(text)) + text + data[8 + length :]


def changed_header(header, rng):
    name = rng.choice([name for name in header if name != '__metadata__'])
    field = rng.choice(['dtype', 'shape', 'data_offsets', None])
    if field is None:
        header[rng.choice([*NAMES, name * 50])] = header.pop(name)
    else:
        header[name][field] = copy.deepcopy(rng.choice(FIELDS))
    return header


CHANGES = [
    torch.Tensor.double, torch.Tensor.long, torch.Tensor.half, torch.Tensor.bool, lambda t: t.cfloat(),
    lambda t: t[None], lambda t: t.flatten()[:-1], lambda t: t[..., 0], lambda t: t.flatten()[0], lambda t: t[:0],
    lambda t: t * float('nan'),
    lambda t: torch.full_like(t, float('inf')), lambda t: -t.abs() - 1, lambda t: t.repeat(2, *[1] * (t.ndim - 1)),
]  # fmt: skip


def changed_tensors(tensors, rng):
    """A sound file of other tensors."""
    tensors = dict(tensors)
    name, how = rng.choice(list(tensors)), rng.random()
    if how < 0.2:
        tensors[rng.choice([*NAMES, f'0{name}', name.replace('.', '..', 1)])] = tensors.pop(name)
    elif how < 0.3:
        del tensors[name]
    else:
        tensors[name] = rng.choice(CHANGES)(tensors[name])
    return save({name: tensor.contiguous() for name, tensor in tensors.items()})


@pytest.mark.parametrize('count', [24, pytest.param(240, marks=pytest.mark.slow)])
@pytest.mark.parametrize(('name', 'file'), [('vit', WEIGHTS), ('vit', OWN), ('resnet', STATISTICS)])
def test_mutated_tensor_files_load_or_are_refused_in_a_sentence(nets, copied, name, file, count):
    path, config, net = copied / name / file, read_config(copied / name), nets[name]
    data, rng = path.read_bytes(), random.Random(1)
    tensors, own, refused = load(data), {k: v for k, v in net.state_dict().items() if not k.startswith(OWN[:14])}, 0
    readers = {
        WEIGHTS: lambda: refuse_misfits(own, read_tensors(path, None), path),
        OWN: lambda: read_own_parameters(net, path, config),
        STATISTICS: lambda: read_statistics(net, path, config),
    }
    with nothing_outside(copied):
        for turn in range(count):
            broken = bytearray(data)
            if turn % 4 == 0:
                broken[rng.randrange(min(4096, len(broken)))] ^= 1 << rng.randrange(8)
            elif turn % 4 == 1:
                broken = broken[: rng.randrange(len(broken))]
            elif turn % 4 == 2:
                broken = with_header(data, lambda header: changed_header(header, rng))
            else:
                broken = changed_tensors(tensors, rng)
            path.write_bytes(bytes(broken))
            refused += is_refused(readers[file])
    assert refused > 0.7 * count


def test_mutated_latency_tables_are_read_or_refused_in_a_sentence():
    row = {'ms': 1.0, 'low': 0.9, 'high': 1.1, 'memory': 5, 'predicted': False}
    setup = {'device': 'cpu', 'hardware': 'x', 'threads': 1, 'torch': '2.9', 'dtype': 'float32', 'backend': 'eager'}
    table = {'format': 1, 'setup': setup, 'batch': 1, 'weights': None, 'rows': {'0': row, '1': row}, 'error': None}
    rng = random.Random(2)
    with folder_in_memory() as folder, nothing_outside(folder):
        path = folder / 'table.json'
        for _ in range(1000):
            path.write_bytes(mutated(table, rng))
            is_refused(lambda: LatencyTable.read(path))


def edit(folder, change):
    path = folder / 'config.json'
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def put(*path_and_value):
    *path, last, value = path_and_value

    def change(config):
        for key in path:
            config = config[key]
        config[last] = value

    return change


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        (put('anchors', 0, 'args', 'checkpoint_path', '/any/file.pth'), "'checkpoint_path' is not an argument that"),
        (put('anchors', 0, 'args', 'pretrained_cfg_overlay', {'file': '/x'}), "'pretrained_cfg_overlay' is not"),
        (put('anchors', 0, 'args', 'features_only', True), "'features_only' is not an argument"),
        (put('anchors', 0, 'args', 'embed_dims', 3), 'did you mean embed_dim'),
        (put('anchors', 0, 'args', 'depth', 900), r'depth is 900, but it holds \d+ tensors'),
        (put('format', True), 'has format True, this snnet reads 1'),
        (put('anchors', 0, 'args', 'depth', 10**6), r'depth is 1000000, not .* up to 1,000'),
        (put('anchors', 0, 'input_size', [3]), r'input_size is \[3\], not channels'),
        (put('anchors', 0, 'input_size', [3, 20000, 20000]), 'input_size is .*from 1 to 4,096'),
        (put('anchors', 0, 'name', 5), 'name is 5, not a printable text'),
        (put('anchors', 0, 'args', 'num_classes', 1e9), 'num_classes is 1000000000.0, not'),
        (put('anchors', 0, 'model', 'resnet18.../../x'), 'model is .*not a name of timm'),
        (put('anchors', 0, 'model', 'hf-hub:a/b'), 'not a name of timm'),
        (put('stitches', 0, 'top1', '99'), "top1 is '99', not a number from 0 to 100"),
        (put('stitches', 0, 'top1', 1e9), 'top1 is 1000000000.0, not a number'),
        (put('stitches', 0, 'top1', float('inf')), 'top1 is inf, not a number'),
        (put('stitches', 0, 'flops', float('nan')), 'flops is nan, not an integer'),
        (put('stitches', 0, 'flops', -1), 'flops is -1, not an integer'),
        (put('stitches', 0, 'flops', True), 'flops is True, not an integer'),
        (put('stitches', 0, 'layers', [-1]), r'layers is \[-1\]'),
        (put('stitches', [{'legs': 'small[:]', 'layers': []}] * 100_000), 'list of 1 to 20,000'),
        (put('sha256', {'model.safetensors': '../x'}), 'not a SHA-256'),
        (put('dtype', 'float8'), "dtype is 'float8', not one of"),
    ],
)  # fmt: skip
def test_a_config_out_of_range_is_refused_with_the_place_in_it(folder, change, said):
    edit(folder, change)
    with nothing_outside(folder), pytest.raises(SnnetError, match=said) as caught:
        StitchableNet.from_pretrained(folder)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('[' * 200_000, 'nested too deeply'),
        ('{"format": ' + '9' * 5000 + '}', 'is not a valid JSON file'),
        ('{"format": 1, "format": 1}', "the key 'format' occurs twice"),
    ],
)
def test_a_config_that_is_no_sound_json_is_refused(folder, text, said):
    (folder / 'config.json').write_text(text)
    with pytest.raises(SnnetError, match=said):
        StitchableNet.from_pretrained(folder)


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        (lambda t: t.double(), 'is of type float64, not float32'),
        (lambda t: t.long(), 'is of type int64, not float32'),
        (lambda t: t * float('nan'), 'holds values that are not finite'),
    ],
)
def test_weights_of_another_type_or_without_a_value_are_refused(folder, change, said):
    path = folder / 'model.safetensors'
    tensors = load_file(path)
    save_file({name: change(tensor) for name, tensor in tensors.items()}, path)
    with pytest.raises(NoWeights, match=said):
        StitchableNet.from_pretrained(folder)


def test_files_have_the_mode_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        family_net('vit').save_pretrained(tmp_path)
    finally:
        os.umask(before)
    assert {
        path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir() if path.stat().st_mode & 0o777 != 0o640
    } == {}


def test_what_never_ends_is_not_read(folder):
    """A pipe waits for a writer; a sparse file of a terabyte takes no space and half an hour to hash."""
    profile = folder / 'profiles' / 'cpu.json'
    profile.parent.mkdir(exist_ok=True)
    os.mkfifo(profile)
    with pytest.raises(SnnetError, match=r'cpu\.json is not a regular file'):
        LatencyTable.read(profile)
    with open(folder / 'model.safetensors', 'r+b') as file:
        file.truncate(1 << 40)
    began = time.process_time()
    with pytest.raises(SnnetError, match=r'model\.safetensors cannot be read'):
        StitchableNet.from_pretrained(folder)
    assert time.process_time() - began < 5
