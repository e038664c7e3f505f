from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import snnet
from snnet import NoWeights, SnnetError, StitchableNet
from snnet.net.save_and_load import write_statistics
from snnet.utils.files import sha256
from tests.helpers.families import family_net, images, shared_net, three_vits
from tests.helpers.rounding import rounding

SAVABLE = ['registers', 'deit-3', 'swin', 'resnet kin', 'convnext', 'regnet z', 'three legs', 'official']


@pytest.mark.quick('deit-3', 'official')
@pytest.mark.parametrize('name', [*SAVABLE, 'windows to maps'])
def test_a_saved_net_comes_back_with_the_same_outputs_and_records(tmp_path, name):
    net = shared_net(name)
    before = net.records
    net.records = [replace(r, top1=70.5 + r.stitch / 8, top5=90.0, loss=1.25, n=1000) for r in before[:-1]] + before[
        -1:
    ]
    try:
        net.save_pretrained(tmp_path / 'new' / 'folder')
        loaded = StitchableNet.from_pretrained(tmp_path / 'new' / 'folder')
        assert loaded.records == net.records
    finally:
        net.records = before
    assert loaded.stitches == net.stitches
    assert not loaded.training
    assert [loaded.anchor(i).official for i in (0, 1)] == [net.anchor(i).official for i in (0, 1)]
    x = images(net.input_size[1])
    with torch.no_grad():
        for i in range(len(net.stitches)):
            assert torch.equal(loaded(x, stitch=i), net(x, stitch=i))


def test_a_net_made_by_name_comes_back(tmp_path):
    net = snnet.create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=3, img_size=96).eval()
    net.save_pretrained(tmp_path)
    loaded = StitchableNet.from_pretrained(tmp_path)
    assert loaded.records == net.records == snnet.measure_costs(loaded).records
    assert (loaded.num_classes, loaded.input_size) == (3, (3, 96, 96))
    with torch.no_grad():
        assert torch.equal(loaded(images(96), stitch=4), net(images(96), stitch=4))


@pytest.mark.parametrize('name', ['paired', 'recalibrated', 'reassembled'])
def test_a_net_that_version_0_1_saved_is_the_same_net(name):
    """Folders that the code of version 0.1 wrote, with the logits that it computed."""
    folder = Path(__file__).parents[1] / 'data' / 'saved_by_0.1' / name
    net = StitchableNet.from_pretrained(folder)
    assert [(r.top1, r.top5, r.loss, r.n) for r in net.records] == [
        (50 + i, 80, 1, 100) for i in range(len(net.records))
    ]
    assert (net.statistics is not None) == (name == 'recalibrated')
    size = net.input_size[1]
    x = torch.linspace(-1, 1, 3 * size * size).sin().view(1, 3, size, size)
    expected = torch.tensor(json.loads((folder / 'logits.json').read_text()))
    with torch.no_grad():
        found = torch.cat([net(x, stitch=i) for i in range(len(net.stitches))])
    torch.testing.assert_close(found, expected, rtol=rounding(torch.float32, 500), atol=rounding(torch.float32, 500))


@pytest.mark.slow  # seconds
def test_levit_comes_back_after_it_ran_in_eval_mode(tmp_path):
    args = {'img_size': 64, 'num_classes': 7}
    anchors = [
        snnet.as_anchor(timm.create_model(n, **args), n, input_size=(3, 64, 64)) for n in ('levit_128s', 'levit_128')
    ]
    net = StitchableNet(anchors, snnet.list_stitches(anchors)).eval()
    with torch.no_grad():
        net(images(64), stitch=3)
        net.save_pretrained(tmp_path)
        loaded = StitchableNet.from_pretrained(tmp_path)
        assert torch.equal(loaded(images(64), stitch=3), net(images(64), stitch=3))


def test_saving_over_a_saved_net_replaces_it(tmp_path):
    three_vits().save_pretrained(tmp_path)
    net = family_net('vit')
    net.save_pretrained(tmp_path)
    assert StitchableNet.from_pretrained(tmp_path).stitches == net.stitches
    assert sorted(path.name for path in tmp_path.iterdir()) == ['README.md', 'config.json', 'model.safetensors']


def test_the_weights_file_holds_the_documented_names(tmp_path):
    net = family_net('vit')
    net.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / 'model.safetensors')) == set(net.state_dict())


@pytest.mark.parametrize('broken', ['source', 'args'])
def test_a_net_that_could_not_be_made_again_is_not_saved(tmp_path, broken):
    net = family_net('vit')
    net.anchor(1).source = None if broken == 'source' else snnet.Source('vit_tiny_patch16_224', {'act_layer': nn.GELU})
    with pytest.raises(SnnetError, match='large cannot be saved'):
        net.save_pretrained(tmp_path / 'folder')
    assert not (tmp_path / 'folder').exists()


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp('saved')
    family_net('vit').save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def edit(folder, **changes):
    path = folder / 'config.json'
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def rename_model(folder):
    config = json.loads((folder / 'config.json').read_text())
    config['anchors'][1]['model'] = 'my_own_net'
    (folder / 'config.json').write_text(json.dumps(config))


def change_weights(folder, **changes):
    path = folder / 'model.safetensors'
    tensors = {**load_file(path), **changes}
    save_file({key: value for key, value in tensors.items() if value is not None}, path)


def truncate(folder, keep):
    path = folder / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:keep])


def unhash(folder):
    """Makes the folder one of the first versions, which noted no SHA-256."""
    edit(folder, sha256=None)


def flip(folder, name, byte):
    path = folder / name
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


BIAS = 'stitch_layers.0.bias'


@pytest.mark.parametrize(
    ('spoil', 'error', 'told'),
    [
        (lambda f: edit(f, format=3), SnnetError, r'format 3, this snnet reads 1 and 2: upgrade'),
        (lambda f: edit(f, format=None), SnnetError, 'format None'),
        (lambda f: edit(f, library='other'), SnnetError, 'does not describe a stitchable network'),
        (lambda f: edit(f, stitches=None), SnnetError, 'lacks stitches'),
        (lambda f: (f / 'config.json').unlink(), SnnetError, r'there is no config\.json'),
        (lambda f: (f / 'config.json').write_text('{"format": 1,'), SnnetError, 'is not a valid JSON file'),
        (lambda f: (f / 'config.json').write_bytes(b'\xff\xfe\x00'), SnnetError, 'is not a valid JSON file'),
        (lambda f: (f / 'config.json').write_text('[]'), SnnetError, 'does not describe a stitchable network'),
        (rename_model, SnnetError, r"timm knows no network 'my_own_net' \(anchor large\).*plugin"),
        (lambda f: (f / 'model.safetensors').unlink(), NoWeights, r'there is no model\.safetensors'),
        (lambda f: truncate(f, 5000), NoWeights, 'is damaged'),
        (lambda f: flip(f, 'model.safetensors', -1), NoWeights, 'is damaged'),
        (lambda f: edit(f, sha256=3), SnnetError, 'sha256 is 3, not a table'),
        (lambda f: (unhash(f), truncate(f, 5000)), NoWeights, 'cannot be read'),
        (lambda f: (unhash(f), truncate(f, 0)), NoWeights, 'cannot be read'),
        (
            lambda f: (unhash(f), change_weights(f, **{BIAS: torch.zeros(5)})),
            NoWeights,
            rf'1 tensors differ, such as {BIAS}',
        ),
        (lambda f: (unhash(f), change_weights(f, **{BIAS: None})), NoWeights, rf'1 tensors differ, such as {BIAS}'),
        (lambda f: (unhash(f), change_weights(f, alien=torch.zeros(1))), NoWeights, 'such as alien'),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_in_one_sentence(folder, spoil, error, told):
    spoil(folder)
    with pytest.raises(error, match=told) as caught:
        StitchableNet.from_pretrained(folder)
    assert '\n' not in str(caught.value)
    assert str(folder) in str(caught.value) or 'plugin' in str(caught.value)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(
        SnnetError, match='there is no folder .*nowhere., and a repository id on the Hub reads OWNER/NAME'
    ):
        StitchableNet.from_pretrained(tmp_path / 'nowhere')


@pytest.mark.parametrize('anchors', [[{'name': 'a'}], [None], 3])
def test_a_damaged_config_is_told_as_that(folder, anchors):
    edit(folder, anchors=anchors)
    with pytest.raises(SnnetError, match=r'config.json.* is damaged'):
        StitchableNet.from_pretrained(folder)


def test_a_folder_without_hashes_loads_as_before(folder):
    unhash(folder)
    assert StitchableNet.from_pretrained(folder).stitches == family_net('vit').stitches


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, value):
    net = family_net('vit')
    net.layer(1).weight.data[0, 0] = value
    with pytest.raises(SnnetError, match=r'not saved: stitch_layers\.1\.weight holds'):
        net.save_pretrained(tmp_path / 'folder')
    assert not (tmp_path / 'folder').exists()


@pytest.fixture(scope='module')
def recalibrated(tmp_path_factory):
    net, folder = family_net('resnet'), tmp_path_factory.mktemp('recalibrated')
    snnet.recalibrate(net, [images(64, 6)], samples=6, stitches=[0, 2, 4], shares=[1])
    net.save_pretrained(folder)
    return net, folder


def outputs(net, size=64):
    with torch.no_grad():
        return [net(images(size, 2, 1), stitch=i) for i in range(len(net.stitches))]


def all_equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.slow  # a few seconds
def test_statistics_travel_with_the_net(recalibrated):
    net, folder = recalibrated
    loaded = StitchableNet.from_pretrained(folder)
    assert (loaded.statistics.samples, loaded.statistics.stitches) == (6, [0, 2, 4])
    assert loaded.statistics.digest() == net.statistics.digest()
    assert all_equal(outputs(loaded), outputs(net))
    assert set(load_file(folder / 'model.safetensors')) == set(family_net('resnet').state_dict())


def forge(folder, change):
    """Changes the statistics and the sum that config.json holds of them."""
    path = folder / 'statistics.safetensors'
    save_file({place: change(value).contiguous() for place, value in load_file(path).items()}, path)
    sums = json.loads((folder / 'config.json').read_text())['sha256']
    edit(folder, sha256={**sums, path.name: sha256(path)})


@pytest.mark.parametrize(
    ('spoil', 'told'),
    [
        (lambda f: flip(f, 'statistics.safetensors', -1), 'statistics.safetensors is damaged'),
        (lambda f: (f / 'statistics.safetensors').unlink(), r'there is no statistics\.safetensors'),
        (lambda f: edit(f, statistics={'samples': 6}), 'statistics is damaged: it lacks stitches'),
        (lambda f: edit(f, statistics={'samples': 6, 'stitches': [99]}), 'stitch ids are the integers'),
        (lambda f: forge(f, lambda value: value[0]), 'does not hold a mean and a variance for each channel'),
        (lambda f: forge(f, lambda value: -value.abs() - 1), 'does not hold a mean and a variance for each channel'),
        (lambda f: forge(f, torch.Tensor.long), 'does not hold a mean and a variance for each channel'),
        (lambda f: forge(f, torch.Tensor.double), 'are of another type than the net, torch.float64'),
    ],
)
def test_statistics_that_do_not_fit_are_refused(recalibrated, tmp_path, spoil, told):
    for path in recalibrated[1].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    spoil(tmp_path)
    with pytest.raises(SnnetError, match=told):
        StitchableNet.from_pretrained(tmp_path)


@pytest.mark.slow  # seconds
def test_a_stop_anywhere_while_statistics_are_written_leaves_a_net_that_loads(recalibrated, tmp_path, monkeypatch):
    plain = family_net('resnet')
    plain.save_pretrained(tmp_path)
    replace_file, left = os.replace, [0]

    def stop(*paths):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        replace_file(*paths)

    monkeypatch.setattr(os, 'replace', stop)
    for writes in range(4):
        left[0] = writes
        with contextlib.suppress(KeyboardInterrupt):
            write_statistics(tmp_path, recalibrated[0].statistics)
        loaded = StitchableNet.from_pretrained(tmp_path)
        assert all_equal(outputs(loaded), outputs(recalibrated[0] if writes == 3 else plain))
    assert loaded.statistics is not None


@pytest.mark.slow  # a second
def test_a_net_without_statistics_leaves_none_of_an_earlier_one(tmp_path, recalibrated):
    recalibrated[0].save_pretrained(tmp_path)
    family_net('resnet').save_pretrained(tmp_path)
    assert not (tmp_path / 'statistics.safetensors').exists()
    assert StitchableNet.from_pretrained(tmp_path).statistics is None


def test_class_names_travel_with_a_net_and_go_with_its_classifiers(tmp_path):
    net = family_net('vit')
    assert net.class_names is None
    net.class_names = [f'sort {i}' for i in range(net.num_classes)]
    net.save_pretrained(tmp_path)
    assert snnet.StitchableNet.from_pretrained(tmp_path).class_names == net.class_names
    other = snnet.StitchableNet.from_pretrained(tmp_path, num_classes=3)
    assert other.class_names is None
    other.save_pretrained(tmp_path)
    assert 'class_names' not in json.loads((tmp_path / 'config.json').read_text())
    for anchor in net.anchors:
        anchor.model.reset_classifier(2)
    assert net.class_names is None


def test_several_labels_travel_with_a_net_and_go_with_its_classifiers(tmp_path):
    net = family_net('vit')
    net.save_pretrained(tmp_path)
    assert 'several_labels' not in json.loads((tmp_path / 'config.json').read_text())  # as in older nets
    assert not snnet.StitchableNet.from_pretrained(tmp_path).several_labels
    net.several_labels = True
    net.save_pretrained(tmp_path)
    again = snnet.StitchableNet.from_pretrained(tmp_path, num_classes=net.num_classes)
    assert again.several_labels
    alone = again.extract(2)
    assert alone.several_labels
    assert not snnet.StitchableNet.from_pretrained(tmp_path, num_classes=3).several_labels
    for changed in (alone, again):
        changed.reset_classifier(net.num_classes)
        assert not changed.several_labels


@pytest.mark.parametrize('value', [1, 'yes', [True]])
def test_whether_a_stranger_says_several_labels_is_checked(folder, value):
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, 'several_labels': value}))
    with pytest.raises(snnet.SnnetError, match=r'config\.json is damaged: several_labels is .*, not true or false'):
        snnet.StitchableNet.from_pretrained(folder)


@pytest.mark.parametrize(
    ('names', 'message'),
    [
        (['a'] * 6, r'config\.json is damaged: 6 class names were given for 7 classes'),
        (['a'] * 6 + ['\x1b[2J'], r'class_names\[6\] is .*, not a printable text of at most 200'),
        (['a'] * 6 + [7], r'class_names\[6\] is 7, not a printable text'),
        ('seven', 'class_names is .seven., not a list of 1 to 1,000,000 texts'),
    ],
)
def test_class_names_of_a_stranger_are_checked(folder, names, message):
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, 'class_names': names}))
    with pytest.raises(snnet.SnnetError, match=message):
        snnet.StitchableNet.from_pretrained(folder)
