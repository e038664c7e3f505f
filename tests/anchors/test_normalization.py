from __future__ import annotations

import copy
import json
import logging

import pytest
import timm
import torch

import snnet
from snnet import as_anchor, create_stitchable_net
from snnet.anchors.normalization import Normalization, Renormalize
from snnet.net.shared_prefixes import all_logits
from tests.helpers.families import shake

HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def anchor(name, normalization=None):
    model = shake(timm.create_model(name, num_classes=3, img_size=64))
    if normalization is not None:
        mean, std = list(normalization.mean), list(normalization.std)
        model.pretrained_cfg = {**model.pretrained_cfg, 'mean': mean, 'std': std}
    return as_anchor(model, name)


def pair(first=HALF, second=IMAGENET):
    anchors = [anchor('test_vit', first), anchor('test_vit2', second)]
    return create_stitchable_net(anchors, pretrained=False).eval()


def pixels(seed=0):
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def normalized(x, how):
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (how.mean, how.std))
    return (x - mean) / std


def test_the_map_leads_from_one_normalization_to_the_other():
    x = pixels()
    found = Renormalize(IMAGENET, HALF)(normalized(x, IMAGENET))
    torch.testing.assert_close(found, normalized(x, HALF), rtol=0, atol=1e-6)  # values below 3, a few roundings


def test_every_anchor_sees_images_as_it_was_trained():
    net = pair()
    given = net.anchor(0).normalization
    x = pixels()
    with torch.no_grad():
        for i in (0, 1):
            own = net.anchor(i)
            expected = own.model(normalized(x, own.normalization))
            found = net(normalized(x, given), stitch=i)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    wrong = net.anchor(1).model(normalized(x, given))
    assert (wrong - net.anchor(1).model(normalized(x, net.anchor(1).normalization))).abs().max() > 1e-2


def test_anchors_that_agree_run_as_before_to_the_bit():
    net = pair(HALF, HALF)
    x = pixels()
    assert [net.anchor(i).renormalize for i in (0, 1)] == [None, None]
    with torch.no_grad():
        assert all(torch.equal(net(x, stitch=i), net.anchor(i).model(x)) for i in (0, 1))


def test_a_list_from_json_is_the_same_as_a_tuple(caplog):
    with caplog.at_level(logging.INFO, 'snnet'):
        pair(HALF, HALF)
    assert not caplog.text


def test_the_log_names_the_network_that_was_trained_otherwise(caplog):
    with caplog.at_level(logging.INFO, 'snnet'):
        net = pair()
    first, second = (net.anchor(i).name for i in (0, 1))
    assert f'{second} was trained with' in caplog.text
    assert f'those of {first}' in caplog.text


@pytest.mark.slow  # seconds
def test_the_map_is_extracted_saved_and_copied(tmp_path):
    net = pair()
    x = pixels()
    net.save_pretrained(tmp_path)
    again = snnet.StitchableNet.from_pretrained(tmp_path)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for stitch in range(len(net.stitches)):
            expected = net(x, stitch=stitch)
            for found in (net.extract(stitch)(x), again(x, stitch=stitch), twin(x, stitch=stitch)):
                assert torch.equal(found, expected)
    assert not [name for name in net.state_dict() if 'renormalize' in name]


def test_a_net_saved_before_normalizations_were_noted_runs_as_it_did(tmp_path):
    net = pair()
    net.save_pretrained(tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    for row in config['anchors']:
        del row['mean'], row['std']
    (tmp_path / 'config.json').write_text(json.dumps(config))
    again = snnet.StitchableNet.from_pretrained(tmp_path)
    x = pixels()
    with torch.no_grad():
        assert torch.equal(again(x, stitch=1), net.anchor(1).model(x))


def test_evaluation_with_shared_prefixes_uses_the_map():
    net = pair()
    x = pixels()
    with torch.no_grad():
        for stitch, logits in all_logits(net, x, range(len(net.stitches))):
            assert torch.equal(logits, net(x, stitch=stitch))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_the_map_follows_the_type_of_the_net(dtype):
    net = pair().to(dtype)
    assert net.anchor(1).renormalize.scale.dtype == dtype
    with torch.no_grad():
        assert net(pixels().to(dtype), stitch=1).dtype == dtype


def test_costs_do_not_change():
    plain = pair(HALF, HALF).records
    assert [(r.flops, r.params) for r in pair().records] == [(r.flops, r.params) for r in plain]
