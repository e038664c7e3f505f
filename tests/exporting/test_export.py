from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import snnet
from snnet.errors import MissingExtra
from snnet.exporting.compare_with_eager import BATCHES
from snnet.exporting.export import Exported, export
from snnet.exporting.formats import FORMATS, Format
from tests.helpers.families import build, family_net, images, shared_net, three_vits, vit


def load(path: Path) -> Callable[[Tensor], Tensor]:
    """What a file of either format computes, read as somebody without this package reads it."""
    if path.suffix == '.pt2':
        return torch.export.load(path).module()
    session = onnxruntime.InferenceSession(path)
    return lambda x: torch.from_numpy(session.run(['logits'], {'images': x.numpy()})[0])


def metadata(path: Path) -> dict[str, Any]:
    if path.suffix == '.pt2':
        extra = {'metadata.json': ''}
        torch.export.load(path, extra_files=extra)
        return json.loads(extra['metadata.json'])
    pairs = {pair.key: pair.value for pair in onnx.load(path, load_external_data=False).metadata_props}
    texts = ('snnet', 'legs', 'input', 'output', 'batch', 'dtype', 'interpolation', 'crop_mode')
    return {key: value if key in texts else json.loads(value) for key, value in pairs.items()}


@torch.no_grad()
def logits(net: snnet.StitchableNet, stitch: int, x: Tensor) -> Tensor:
    return net.eval()(x, stitch=stitch)


@pytest.fixture(scope='module')
def three(tmp_path_factory) -> Callable[[str], Exported]:
    """A stitch of three legs with an accuracy, by format, made when first asked for."""
    folder, net = tmp_path_factory.mktemp('three'), three_vits(nearest=False)
    last = len(net.stitches) - 1
    net.records[last] = replace(net.records[last], top1=71.25)
    return cache(lambda format: export(net, last, folder / 'made' / f'a.{format}'))


@pytest.mark.slow  # seconds
@pytest.mark.parametrize(
    ('name', 'format'),
    [
        ('official', 'pt2'),
        ('resnet', 'onnx'),
        ('levit', 'onnx'),
    ],
)
def test_a_file_gives_the_logits_of_its_stitch_on_any_batch_size(name, format, tmp_path):
    net = shared_net(name)
    stitch = len(net.stitches) - 1
    done = export(net, stitch, tmp_path / f'a.{format}')
    run = load(done.path)
    for count in (1, 3, 8):
        x = images(net.input_size[1], count, seed=3)
        torch.testing.assert_close(run(x), logits(net, stitch, x), rtol=1e-4, atol=2e-5)
    assert (done.stitch, done.legs, done.batches) == (stitch, str(net.stitches[stitch]), BATCHES)
    assert 0 <= done.difference < 1e-4 < done.largest
    assert list(tmp_path.iterdir()) == [done.path]


@pytest.mark.slow  # seconds
@pytest.mark.parametrize('format', FORMATS)
def test_a_file_holds_its_own_parameters_alone_and_no_path_of_this_machine(three, format):
    path, params = three(format).path, three(format).metadata['params']
    if format == 'pt2':
        held = sum(p.numel() for p in torch.export.load(path).parameters())
        assert held == params
    else:
        weights = onnx.load(path).graph.initializer
        held = sum(onnx.numpy_helper.to_array(w).size for w in weights if w.data_type == onnx.TensorProto.FLOAT)
        assert params <= held <= params + 50  # a few constants
    assert params < sum(p.numel() for p in three_vits(nearest=False).parameters()) / 2
    data = path.read_bytes()
    assert b'site-packages' not in data
    assert b'/snnet/' not in data


@pytest.mark.quick('pt2')
@pytest.mark.parametrize('format', FORMATS)
def test_a_file_says_what_it_is(three, format):
    net, done = three_vits(nearest=False), three(format)
    record = net.records[-1]
    assert metadata(done.path) == {
        'snnet': snnet.__version__,
        'stitch': record.stitch,
        'legs': record.legs,
        'flops': record.flops,
        'params': record.params,
        'top1': 71.25,
        'input': 'images',
        'input_size': [3, 32, 32],
        'batch': 'any',
        'dtype': 'float32',
        'output': 'logits',
        'classes': 7,
        'mean': [0.5, 0.5, 0.5],
        'std': [0.5, 0.5, 0.5],
        'interpolation': 'bicubic',
        'crop_pct': 0.9,
        'crop_mode': 'center',
    }


_PT2 = """
import json, sys, torch
sys.modules.update(snnet=None, timm=None, einops=None)
extra = {'metadata.json': ''}
run = torch.export.load('made/a.pt2', extra_files=extra).module()
size = json.loads(extra['metadata.json'])['input_size']
print([run(torch.ones(n, *size)).double().sum(1)[-1].item() for n in (1, 4)])
"""
_ONNX = """
import json, sys, numpy as np
sys.modules.update(snnet=None, torch=None, timm=None)
import onnxruntime
session = onnxruntime.InferenceSession('made/a.onnx')
size = json.loads(session.get_modelmeta().custom_metadata_map['input_size'])
print([float(session.run(['logits'], {'images': np.ones((n, *size), np.float32)})[0].sum(1)[-1]) for n in (1, 4)])
"""


@pytest.mark.slow  # seconds
@pytest.mark.parametrize(('format', 'code'), [('pt2', _PT2), ('onnx', _ONNX)])
def test_a_file_runs_where_this_package_is_not(three, format, code):
    folder = three(format).path.parents[1]
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=folder, capture_output=True, timeout=120)
    net = three_vits(nearest=False)
    wanted = logits(net, len(net.stitches) - 1, torch.ones(1, 3, 32, 32)).sum().item()
    assert json.loads(done.stdout) == pytest.approx([wanted, wanted], rel=1e-4), done.stderr


@pytest.mark.slow  # seconds
def test_an_onnx_file_names_its_input_output_and_batch(three):
    graph = onnx.load(three('onnx').path).graph
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {'images': ['batch', 3, 32, 32], 'logits': ['batch', 7]}


@pytest.mark.slow
def test_a_stitch_takes_its_own_batch_norm_statistics_along(tmp_path):
    net = family_net('resnet')
    x, stitch = images(64, 6), len(net.stitches) - 1
    before = logits(net, stitch, x)
    snnet.recalibrate(net, [images(64, 16, seed=5)], samples=16, shares=[1])
    after = logits(net, stitch, x)
    assert not torch.allclose(before, after, atol=0.1)
    torch.testing.assert_close(load(export(net, stitch, tmp_path / 'a.pt2').path)(x), after)
    assert net.statistics is not None


def _low_rank(net: snnet.StitchableNet) -> snnet.StitchableNet:
    layer = net.layer(net.stitches[-1].layers[0])
    layer.start_update(2)
    assert layer.up is not None
    nn.init.normal_(layer.up)
    return net


@pytest.mark.slow  # seconds
@pytest.mark.parametrize(
    'change',
    [
        _low_rank,
        lambda net: net.train(),
        lambda net: snnet.compile_blocks(net, 'eager'),
        lambda net: net.to(memory_format=torch.channels_last),
        lambda net: net.half(),
        lambda net: net.bfloat16(),
    ],
    ids=['low rank', 'train mode', 'compiled', 'channels last', 'half', 'bfloat16'],
)
def test_nets_in_every_state_are_exported_and_stay_in_it(change, tmp_path):
    net = change(family_net('vit'))
    training, dtype = net.training, next(net.parameters()).dtype
    done = export(net, 3, tmp_path / 'a.pt2')
    assert (net.training, next(net.parameters()).dtype) == (training, dtype)
    x = images(32, 3).to(dtype)
    torch.testing.assert_close(load(done.path)(x), logits(net, 3, x))
    assert done.metadata['dtype'] == str(dtype).removeprefix('torch.')


@pytest.mark.slow
def test_onnx_keeps_half_and_turns_bfloat16_into_float32_with_a_word(tmp_path, caplog):
    half, brain = (family_net('vit').to(dtype) for dtype in (torch.half, torch.bfloat16))
    x = images(32, 3)
    kept = load(export(half, 3, tmp_path / 'half.onnx').path)(x.half())
    torch.testing.assert_close(kept, logits(half, 3, x.half()), rtol=0.02, atol=0.02)
    with caplog.at_level(logging.WARNING):
        turned = load(export(brain, 3, tmp_path / 'brain.onnx').path)(x)
    assert 'float32, because onnxruntime does not support bfloat16' in caplog.text
    torch.testing.assert_close(turned, logits(brain.float(), 3, x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_an_extracted_stitch_is_exported_as_it_is(tmp_path):
    net = family_net('levit')
    module, x = net.extract(2).train(), images(64, 3)
    done = export(module, None, tmp_path / 'a.pt2')
    torch.testing.assert_close(load(done.path)(x), logits(net, 2, x))
    assert module.training
    assert done.stitch is None
    assert done.metadata['params'] == net.records[2].params
    with pytest.raises(snnet.SnnetError, match='holds no other stitches, but stitch 2'):
        export(module, 2, tmp_path / 'a.pt2')


@pytest.mark.slow
def test_inside_inference_mode_the_active_stitch_is_exported(tmp_path):
    net = family_net('vit')
    with torch.inference_mode(), net.using(4):
        assert export(net, None, tmp_path / 'a.pt2').stitch == 4


@pytest.mark.slow
def test_a_fixed_batch_takes_that_size_alone(tmp_path):
    net = shared_net('vit')
    done = export(net, 3, tmp_path / 'a.pt2', batch=3)
    run = load(done.path)
    torch.testing.assert_close(run(images(32, 3)), logits(net, 3, images(32, 3)))
    assert (done.batches, done.metadata['batch']) == ((3,), 3)
    with pytest.raises(AssertionError):
        run(images(32, 2))
    path = export(net, 0, tmp_path / 'a.onnx', batch=1).path
    assert [size.dim_value for size in onnx.load(path).graph.input[0].type.tensor_type.shape.dim] == [1, 3, 32, 32]


class Specialized(nn.Module):
    """A block whose graph holds for one batch size only."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.ones(int(x.shape[0]), 1, 1).expand(x.shape) if x.shape[0] == 2 else x


@pytest.mark.slow
def test_what_has_no_graph_for_every_batch_is_refused(tmp_path):
    net = family_net('vit')
    net.anchor(0).model.blocks[1] = Specialized()
    with pytest.raises(snnet.SnnetError, match=r'small\[:\] cannot be exported to .* \(a fixed batch'):
        export(net, 0, tmp_path / 'a.pt2')
    assert list(tmp_path.iterdir()) == []
    export(net, 0, tmp_path / 'a.pt2', batch=2)


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (lambda y: y * (1 + 2e-3), 'on a batch of 1 the file differs from eager by .+, but rounding explains at most'),
        (lambda y: y * float('nan'), 'differs from eager by nan'),
        (lambda y: y[:1], r'gives logits \(1, 7\), eager \(2, 7\)'),
    ],
)
def test_a_file_that_differs_from_eager_is_not_left(wrong, message, tmp_path, monkeypatch):
    net = shared_net('vit')

    def write(program: Any, metadata: dict[str, Any], path: Path, data: str) -> None:
        path.write_text('a file')

    def load_wrong(path: Path) -> Callable[[Tensor], Tensor]:
        assert path.read_text() == 'a file'
        return lambda x: wrong(logits(net, 3, x))

    monkeypatch.setattr(snnet.exporting.export, 'trace', lambda *args, **options: None)
    monkeypatch.setattr(snnet.exporting.export, 'FORMATS', {'pt2': Format(write, load_wrong)})
    path = tmp_path / 'a.pt2'
    path.write_text('older')
    with pytest.raises(snnet.SnnetError, match=message):
        export(net, 3, path)
    assert [file.name for file in tmp_path.iterdir()] == ['a.pt2']
    assert path.read_text() == 'older'


def test_a_stitch_whose_own_logits_are_not_finite_is_refused(tmp_path):
    net = family_net('vit')
    nn.init.constant_(net.anchor(0).model.head.bias, float('inf'))
    with pytest.raises(snnet.SnnetError, match='its own logits are not finite'):
        export(net, 0, tmp_path / 'a.pt2')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_weights_too_large_for_one_onnx_file_lie_in_a_second_that_is_named(tmp_path, monkeypatch):
    net, path = shared_net('vit'), tmp_path / 'a.onnx'
    monkeypatch.setattr(snnet.exporting.onnx, 'ONE_FILE', 10_000)
    done = export(net, 3, path)
    assert done.data == tmp_path / 'a.onnx.data'
    assert f'{path} and {done.data}' in str(done)
    assert path.stat().st_size < done.data.stat().st_size + 100_000
    torch.testing.assert_close(load(path)(images(32)), logits(net, 3, images(32)), rtol=1e-4, atol=1e-5)
    monkeypatch.undo()
    assert export(net, 3, path).data is None
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_the_terminal_stays_clean(tmp_path, capfd):
    export(shared_net('vit'), 3, tmp_path / 'a.onnx')
    assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('a.bin', {}, "suffix of '.*a.bin' is not a format: use .pt2 or .onnx"),
        ('a.pt2', {'format': 'onnx'}, "'.*a.pt2' has the suffix of another format than onnx: name it .onnx"),
        ('a', {'format': 'jit'}, "to pt2 or onnx, not to 'jit'"),
        ('a.pt2', {'batch': 0}, 'batch is at least 1, but 0 was given'),
        ('.', {'format': 'pt2'}, "'.*' is a folder: name a file in it"),
        (f'{__file__}/a.pt2', {}, r"'.*test_export.py' is a file, so there cannot be a folder '.*test_export.py'"),
    ],
)
def test_impossible_wishes_are_refused_in_a_sentence(name, options, message, tmp_path):
    with pytest.raises(snnet.SnnetError, match=message):
        export(shared_net('vit'), 0, tmp_path / name, **options)


def test_something_else_than_a_net_and_no_name_are_refused():
    with pytest.raises(snnet.SnnetError, match='a net or an extracted stitch is exported, not a Linear'):
        export(torch.nn.Linear(2, 2), 0, 'a.pt2')
    with pytest.raises(snnet.SnnetError, match=r"'\.' is a folder: name a file in it"):
        export(shared_net('vit'), 0, '', format='pt2')


def test_without_the_extra_onnx_is_refused_with_its_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(
        MissingExtra,
        match=r"needs onnxruntime: pip install -e '\.\[export\]' in .*, or pip install onnxr",
    ):
        export(shared_net('vit'), 0, tmp_path / 'a.onnx')


def int8_error(run: Callable[[Tensor], Tensor], net: snnet.StitchableNet, stitch: int) -> float:
    """Largest difference to the net, as a share of the largest logit."""
    x = images(32, 4, seed=9)
    wanted = logits(net, stitch, x)
    with torch.no_grad():
        return float((run(x) - wanted).abs().max() / wanted.abs().max())


@pytest.mark.slow
def test_an_extracted_stitch_is_quantized_by_torchao_and_exported(tmp_path):
    quantization = pytest.importorskip('torchao.quantization')
    net = wide_net()
    module = net.extract(3)
    plain = export(module, None, tmp_path / 'plain.pt2').path
    config = quantization.Int8WeightOnlyConfig()
    quantization.quantize_(module, config, filter_fn=lambda layer, name: type(layer) is nn.Linear)
    assert 0 < int8_error(module, net, 3) < 0.05
    done = export(module, None, tmp_path / 'int8.pt2')
    assert done.difference == 0
    assert 0 < int8_error(load(done.path), net, 3) < 0.05
    assert done.path.stat().st_size < plain.stat().st_size / 2


@pytest.mark.slow
def test_an_exported_stitch_is_quantized_by_onnxruntime(tmp_path):
    quantization = pytest.importorskip('onnxruntime.quantization')
    net, path, small = wide_net(), tmp_path / 'a.onnx', tmp_path / 'int8.onnx'
    export(net, 3, path)
    quantization.quantize_dynamic(path, small)
    assert 0 < int8_error(load(small), net, 3) < 0.2
    assert small.stat().st_size < path.stat().st_size / 2


def wide_net() -> snnet.StitchableNet:
    """ViTs that are mostly weights."""
    return build(('small', partial(vit, 128, 2)), ('large', partial(vit, 192, 2, num_heads=3)), size=32)
