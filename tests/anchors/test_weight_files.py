from __future__ import annotations

import argparse
import collections
import datetime
import logging
import pathlib
import zipfile

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from snnet import NoWeights, SnnetError, create_stitchable_net
from snnet.anchors.names import has_local_weights, resolve, split_names, weights_file, without_file
from snnet.anchors.weight_files import read_weights
from snnet.anchors.weights import load_anchor
from tests.helpers.families import CLASSES, shake


@pytest.fixture(scope='module')
def model():
    return shake(timm.create_model('test_vit', num_classes=CLASSES)).eval()


def state_of(model, prefix=''):
    return {prefix + key: value.clone() for key, value in model.state_dict().items()}


def loaded(path, **options):
    return load_anchor(f'test_vit={path}', pretrained=False, **options).model


def same(a, b):
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize(
    'prefix', ['module.', '_orig_mod.', 'module._orig_mod.', 'model.', 'backbone.', 'encoder.vit.', 'teacher.backbone.']
)
@pytest.mark.parametrize('key', ['', 'model', 'state_dict'])
def test_prefixes_of_wrappers_and_trainers_are_taken_off(tmp_path, model, prefix, key):
    state = {**state_of(model, prefix), 'criterion.weight': torch.ones(3), 'steps': torch.tensor(3)}
    torch.save({key: state, 'epoch': 3} if key else state, tmp_path / 'w.pth')
    assert same(loaded(tmp_path / 'w.pth'), model)


@pytest.mark.parametrize('wrapper', ['_orig_mod', '_checkpoint_wrapped_module', '_fsdp_wrapped_module'])
def test_names_inside_wrapped_blocks_are_read_too(tmp_path, model, wrapper):
    state = {
        f'module.{key}'.replace('.blocks.1.', f'.blocks.1.{wrapper}.'): value for key, value in state_of(model).items()
    }
    torch.save({'model': state}, tmp_path / 'w.pth')
    assert same(loaded(tmp_path / 'w.pth'), model)


def test_arrays_of_numpy_are_weights_too(tmp_path, model):
    torch.save({key: value.numpy() for key, value in state_of(model).items()}, tmp_path / 'w.pth')
    assert same(loaded(tmp_path / 'w.pth'), model)


@pytest.mark.parametrize(
    ('wanted', 'other'),
    [
        (('state_dict_ema', ''), ('state_dict', '')),
        (('model_ema', ''), ('model', '')),
        (('ema', ''), ('model', '')),
        (('teacher', 'module.'), ('student', 'module.')),
        (('state_dict', 'module.encoder_q.'), ('state_dict', 'module.encoder_k.')),
    ],
)
def test_of_several_copies_the_one_that_trainers_mean_is_taken(tmp_path, model, wanted, other):
    content = collections.defaultdict(dict)
    stranger = timm.create_model('test_vit', num_classes=CLASSES)
    for (key, prefix), network in ((other, stranger), (wanted, model)):
        content[key].update(state_of(network, prefix))
    torch.save(dict(content), tmp_path / 'w.pth')
    assert same(loaded(tmp_path / 'w.pth'), model)


@pytest.mark.parametrize('name', ['W.SAFETENSORS', 'w.pth', 'w.bin', 'gewichte für später', 'w.safetensors'])
def test_what_a_file_holds_counts_not_its_name(tmp_path, model, name):
    save_file(state_of(model), tmp_path / name)
    assert same(loaded(tmp_path / name), model)
    torch.save(state_of(model), tmp_path / name)
    assert same(loaded(tmp_path / name), model)


def test_the_log_names_the_copies_that_are_not_used(tmp_path, model, caplog):
    torch.save({'model': state_of(model), 'model_ema': state_of(model)}, tmp_path / 'w.pth')
    with caplog.at_level(logging.WARNING, 'snnet'):
        loaded(tmp_path / 'w.pth')
    assert 'model_ema is used, not model' in caplog.text


@pytest.mark.parametrize(
    'beside',
    [
        np.float64(0.5),
        np.float32(0.5),
        np.int64(3),
        np.arange(3.0),
        np.array(['a', 'b']),
        pathlib.Path('a/b'),
        datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc),
        datetime.timedelta(1),
        collections.defaultdict(list, {'a': [1]}),
        collections.OrderedDict(a=1),
        argparse.Namespace(lr=0.1, output=pathlib.Path('out')),
        {1, 2},
    ],
    ids=lambda value: type(value).__name__,
)
def test_harmless_objects_beside_the_weights_are_read(tmp_path, model, beside):
    torch.save({'model': state_of(model), 'args': beside, 'more': {'deep': [beside]}}, tmp_path / 'w.pth')
    assert same(loaded(tmp_path / 'w.pth'), model)


def test_other_objects_are_named_with_the_remedy(tmp_path, model):
    torch.save({'model': state_of(model), 'net': torch.nn.Sequential()}, tmp_path / 'w.pth')
    with pytest.raises(NoWeights, match=r'Sequential.*weights_only=False.*save its table of tensors alone'):
        loaded(tmp_path / 'w.pth')


def without_head(model, prefix=''):
    return {key: value for key, value in state_of(model, prefix).items() if not key.startswith(f'{prefix}head.')}


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
@pytest.mark.parametrize('extra', [{}, {'head.mlp.0.weight': torch.ones(2, 2), 'mask_token': torch.ones(1)}])
def test_a_file_without_classifier_gives_the_body_and_a_new_classifier(tmp_path, model, caplog, prefix, extra):
    torch.save({**without_head(model, prefix), **extra}, tmp_path / 'w.pth')
    with caplog.at_level(logging.WARNING, 'snnet'):
        found = loaded(tmp_path / 'w.pth', num_classes=5)
    assert found.num_classes == len(found.head.weight) == 5
    assert torch.equal(found.blocks[3].mlp.fc1.weight, model.blocks[3].mlp.fc1.weight)
    assert 'holds no classifier, so the one for 5 classes is new' in caplog.text
    assert (not prefix and bool(extra) == ('2 tensors are not used' in caplog.text)) or prefix


def test_a_file_without_classifier_needs_the_number_of_classes(tmp_path, model):
    save_file(without_head(model), tmp_path / 'w.safetensors')
    with pytest.raises(NoWeights, match=r'holds no classifier for test_vit \(head\): give num_classes='):
        loaded(tmp_path / 'w.safetensors')


def test_a_body_that_lacks_something_is_refused(tmp_path, model):
    state = without_head(model)
    del state['norm.weight']
    torch.save(state, tmp_path / 'w.pth')
    with pytest.raises(NoWeights, match=r'norm\.weight'):
        loaded(tmp_path / 'w.pth', num_classes=5)


@pytest.mark.parametrize('form', ['local-dir:{}', '{}'])
def test_a_folder_of_timm_is_an_anchor(tmp_path, model, form):
    from timm.models import save_for_hf

    folder = tmp_path / 'lr=0.1,wd=0.05'
    save_for_hf(model, folder, safe_serialization=True)
    anchor = load_anchor(form.format(folder), pretrained=False)
    assert same(anchor.model, model)
    net = create_stitchable_net(form.format(folder) + ',test_vit2', pretrained=False, num_classes=CLASSES)
    assert form.format(folder) in [a.name for a in net.anchors]
    net.save_pretrained(tmp_path / 'net')
    again = type(net).from_pretrained(tmp_path / 'net')
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def test_a_folder_that_timm_did_not_save_is_refused(tmp_path):
    with pytest.raises(NoWeights, match='does not exist'):
        load_anchor(f'local-dir:{tmp_path}/none', pretrained=True)
    with pytest.raises(NoWeights, match='holds no network that timm saved'):
        load_anchor(f'local-dir:{tmp_path}', pretrained=True)


def test_a_repository_that_cannot_be_reached_is_named(monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    with pytest.raises(SnnetError, match=r'the repository nobody/nothing of the Hugging Face Hub cannot be loaded'):
        load_anchor('hf-hub:nobody/nothing', pretrained=True)


def test_a_name_with_a_slash_is_told_how_the_hub_is_named():
    with pytest.raises(SnnetError, match="unknown network 'timm/somewhat' .*hf-hub:timm/somewhat"):
        load_anchor('timm/somewhat', pretrained=True)


def test_paths_that_exist_may_hold_commas(tmp_path, model):
    path = tmp_path / 'lr=0.1,wd=0.05' / 'w,1.pth'
    path.parent.mkdir()
    torch.save(state_of(model), path)
    assert split_names(f'test_vit={path}, test_vit2') == [f'test_vit={path}', 'test_vit2']
    assert split_names(f'test_vit2,test_vit={path},') == ['test_vit2', f'test_vit={path}']
    assert split_names('a,b , c') == ['a', 'b', 'c']
    assert split_names(['a,b', 'c']) == ['a,b', 'c']
    net = create_stitchable_net(f'test_vit={path},test_vit2', pretrained=False, num_classes=CLASSES)
    assert {a.name for a in net.anchors} == {'test_vit', 'test_vit2'}


def test_a_path_that_was_cut_at_a_comma_is_explained(tmp_path):
    with pytest.raises(NoWeights, match='commas separate networks'):
        create_stitchable_net('test_vit=lr=0.1,wd=0.05/w.pth,test_vit2', pretrained=False)


def test_a_name_tells_its_local_weights_apart_from_the_network(tmp_path, model):
    folder = tmp_path / 'a=b'
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    for name in (str(folder), f'local-dir:{folder}'):
        assert weights_file(name) == folder / 'model.safetensors'
        assert without_file(name) == name
        assert has_local_weights(name)
    assert weights_file('test_vit = a=b.pth') == pathlib.Path('a=b.pth')
    assert without_file('test_vit = a=b.pth') == 'test_vit'
    assert weights_file('test_vit') is weights_file('hf-hub:a/b=c') is None
    assert without_file('hf-hub:a/b=c') == 'hf-hub:a/b=c'
    assert not has_local_weights('test_vit')


def test_a_registered_name_comes_before_a_folder_of_that_name(tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    timm.models.save_for_hf(model, tmp_path / 'test_vit', safe_serialization=True)
    assert resolve('test_vit').model == 'test_vit'
    assert resolve('./test_vit').model == 'local-dir:./test_vit'


def test_a_long_list_of_names_is_not_taken_for_a_path():
    names = [f'network_{i}' for i in range(2000)]
    assert split_names(','.join(names)) == names
    with pytest.raises(SnnetError, match='unknown network'):
        resolve('x' * 5000)


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        (b'', 'is empty'),
        (b'version https://git-lfs.github.com/spec/v1\n', 'is a pointer of Git LFS'),
        (b'<!doctype html>', 'is a web page'),
        (b'hello, these are no weights\n', 'is a text, not weights'),
        (b'\x1f\x8b\x08', 'is compressed by gzip'),
        (b'PK\x03\x04 and no more', 'is cut off or damaged'),
        (b'GGUF\x03\x00', 'is a file of GGUF'),
        (b'\x08\x07\x12\x07pytorch', 'is a network of ONNX'),
        (b'\x01\x02\x03\x04' * 9, r'holds no readable weights \(neither torch nor safetensors wrote it, or it is dam'),
    ],
)
def test_a_file_that_holds_no_weights_is_called_what_it_is(tmp_path, content, said):
    (tmp_path / 'w.pth').write_bytes(content)
    with pytest.raises(NoWeights, match=said):
        create_stitchable_net(f'test_vit={tmp_path}/w.pth', pretrained=False)


def test_a_program_of_torch_and_a_list_of_shards_are_called_what_they_are(tmp_path):
    with zipfile.ZipFile(tmp_path / 'w.pth', 'w') as archive:
        archive.writestr('w/archive_format', 'pt2')
    (tmp_path / 'w.index.json').write_text('{"weight_map": {}}')
    for name, said in (('w.pth', 'is a program of torch.export: save'), ('w.index.json', 'lists the files that the')):
        with pytest.raises(NoWeights, match=said):
            create_stitchable_net(f'test_vit={tmp_path / name}', pretrained=False)


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        (lambda t: t.to(torch.int8), 'weights of type int8'),
        (lambda t: t * float('inf'), 'values that are not finite'),
        (lambda t: t.to('meta'), 'names and shapes only'),
    ],
)
def test_weights_without_usable_values_are_refused(tmp_path, change, said):
    torch.save({'head.weight': change(torch.ones(3, 4))}, tmp_path / 'w.pth')
    with pytest.raises(NoWeights, match=said):
        read_weights(tmp_path / 'w.pth', 'x', {'head.weight': torch.Size([3, 4])})


def test_a_head_beside_a_prefixed_backbone_is_taken_too(tmp_path):
    own = {'blocks.0.weight': torch.ones(2, 2), 'blocks.1.weight': torch.ones(2, 2), 'head.weight': torch.ones(3, 2)}
    state = {f'backbone.{name}' if 'blocks' in name else name: tensor for name, tensor in own.items()}
    torch.save({'state_dict': state}, tmp_path / 'w.pth')
    assert read_weights(tmp_path / 'w.pth', 'x', {name: t.shape for name, t in own.items()}).keys() == own.keys()


def test_two_copies_under_prefixes_of_one_table_are_told(tmp_path, caplog):
    state = {f'{prefix}.w': torch.full((2,), float(i)) for i, prefix in enumerate(('student', 'teacher'))}
    torch.save(state, tmp_path / 'w.pth')
    assert read_weights(tmp_path / 'w.pth', 'x', {'w': torch.Size([2])})['w'].tolist() == [1, 1]
    assert 'teacher is used, not student' in caplog.text
