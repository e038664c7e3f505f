"""What config.json says for timm and transformers."""

from __future__ import annotations

import json

import pytest
from timm.data import resolve_data_config

import snnet
from snnet.net.preprocessing import preprocessing
from snnet.saving.timm_row import read_timm_row
from snnet.utils.typed_json import TypedTable


def test_timm_prepares_images_by_the_config_of_a_saved_net_as_the_net_does(tmp_path):
    net = snnet.create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=3, img_size=32)
    net.preprocessing = {'crop_pct': 0.8}
    net.save_pretrained(tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    found = resolve_data_config(pretrained_cfg=config['pretrained_cfg'])
    assert {name: tuple(v) if isinstance(v, list) else v for name, v in found.items()} == preprocessing(net)
    assert (config['architecture'], config['model_type']) == ('snnet', 'snnet')


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'input_size': [3, 32]}, r'input_size is \[3, 32\], not channels, height and width'),
        ({'input_size': [3, 32, 10**9]}, 'input_size is .*, not a list of at most 3 integers from 1 to 4,096'),
        ({'mean': [0.5, 'x', 0.5]}, "mean is 'x', not a number"),
        ({'std': [0.5, 0.5, 0]}, 'std is 0, not a number from 1e-06'),
        ({'crop_pct': -1}, 'crop_pct is -1, not a number from 0.01'),
        ({'num_classes': 1.5}, 'num_classes is 1.5, not an integer'),
        ({'interpolation': '\x1b[2J'}, 'interpolation is .*, not a printable text'),
    ],
)
def test_what_strangers_say_for_others_is_checked(values, message):
    with pytest.raises(snnet.SnnetError, match=message):
        read_timm_row(TypedTable({'pretrained_cfg': values}, 'config.json'))


def test_other_keys_are_dropped_and_none_are_needed():
    row = {'crop_pct': 0.9, 'url': 'http://example.invalid/x.pth', 'file': '/etc/passwd'}
    assert read_timm_row(TypedTable({'pretrained_cfg': row}, 'config.json')) == {'crop_pct': 0.9}
    assert read_timm_row(TypedTable({}, 'config.json')) == {}
