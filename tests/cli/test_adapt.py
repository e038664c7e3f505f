from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import snnet
from snnet.cli.main import main
from snnet.utils.plugins import import_plugins
from tests.helpers.runs import write_images

PLUGIN = str(Path(__file__).parents[2] / 'examples' / 'digits.py')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The folder of an evaluated net of small transformers, beside images."""
    import_plugins([PLUGIN])
    net = snnet.create_stitchable_net('digits_small,digits_medium', pretrained=False, num_classes=3).eval()
    net.records = [replace(record, top1=50.0, n=10) for record in net.records]
    path = tmp_path_factory.mktemp('adapt')
    net.save_pretrained(path / 'net')
    write_images(path / 'images' / 'train', 3, 6, size=8)
    return path


@pytest.mark.slow  # a few seconds
def test_a_saved_net_gets_own_parameters_and_its_weights_stay(folder, capsys):
    before = snnet.StitchableNet.from_pretrained(folder / 'net')
    weights = (folder / 'net' / 'model.safetensors').read_bytes()
    flags = ['--data-dir', str(folder / 'images'), '--plugin', PLUGIN, '--workers', '0', '--steps', '3']
    assert main(['adapt', str(folder / 'net'), *flags, '--stitches', '2-4', '--lr', '1e-3']) == 0
    after = snnet.StitchableNet.from_pretrained(folder / 'net')
    assert (folder / 'net' / 'model.safetensors').read_bytes() == weights
    own = after.own_parameters.stitches
    assert own
    assert set(own) <= {2, 3, 4}
    assert f'{len(own)} have parameters of their own' in capsys.readouterr().out
    assert [r.stitch for r in after.records if r.top1 is None] == own
    with torch.no_grad():
        x = torch.randn(2, 3, 8, 8)
        assert torch.equal(before(x, stitch=1), after(x, stitch=1))
    assert not (folder / 'net' / 'adapting').exists()
    assert main(['info', str(folder / 'net'), '--plugin', PLUGIN]) == 0
    assert f'{len(own)} of {len(after.stitches)} stitches have parameters of their own' in capsys.readouterr().out


def test_a_net_on_the_hub_cannot_keep_them(capsys):
    assert main(['adapt', 'owner/name', '--data-dir', 'images']) == 2
    assert "there is no folder 'owner/name'" in capsys.readouterr().err
