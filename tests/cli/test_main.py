from __future__ import annotations

import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import snnet
from snnet.cli.main import COMMANDS, main
from snnet.net.hardware import setup_of


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A saved net whose even stitches were evaluated, with a table that holds here and one that does not."""
    folder = tmp_path_factory.mktemp('net')
    net = snnet.create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=5, img_size=32).eval()
    net.records = [replace(r, top1=50.0 + r.stitch, n=10) if r.stitch % 2 == 0 else r for r in net.records]
    net.save_pretrained(folder)
    (folder / 'profiles').mkdir()
    rows = {r.stitch: snnet.Latency(2.0 + r.stitch, 1.5, 9.0, 1000) for r in net.records}
    here = snnet.LatencyTable(setup_of(net), 1, net.fingerprint, rows)
    elsewhere = replace(here, setup=replace(here.setup, hardware='abacus', threads=9), batch=4)
    for table in (here, elsewhere):
        (folder / 'profiles' / table.file_name).write_text(table.to_json())
    return folder


@pytest.mark.filterwarnings('ignore:.*found in sys.modules')
def test_the_module_runs_as_the_command_does(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['snnet', '--version'])
    with pytest.raises(SystemExit, match='0'):
        runpy.run_module('snnet.cli.main', run_name='__main__')
    assert capsys.readouterr().out == f'snnet {snnet.__version__}\n'


@pytest.mark.slow  # seconds
def test_info_prints_anchors_frontier_and_which_tables_hold_here(folder, capsys):
    assert main(['info', str(folder)]) == 0
    text = capsys.readouterr().out
    assert 'anchor test_vit (timm test_vit): 0.001' in text
    lines = text.splitlines()
    header = next(line for line in lines if 'GFLOPs' in line and 'top-1' in line)
    assert header.split() == ['id', 'GFLOPs', 'Mparams', 'ms', 'top-1', 'vs', 'mixing', 'stitch']
    assert next(line for line in lines if line.startswith('   0  ')).split()[3:5] == ['2', '50.00']
    assert sum('; valid here' in line for line in lines) == 1
    assert 'not valid here: hardware abacus, not ' in text
    assert ', threads 9, not 1' in text


def test_info_says_what_is_not_known_yet(tmp_path, capsys):
    snnet.create_stitchable_net('test_vit,test_vit2', pretrained=False).save_pretrained(tmp_path)
    assert main(['info', str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert 'no stitch has been evaluated yet' in text
    assert 'no latency table yet' in text


@pytest.mark.parametrize('command', [command for command in COMMANDS if command != 'split'])  # which takes images
def test_every_command_tells_bad_input_in_one_sentence(command, tmp_path, capsys):
    more = {'export': ['--stitch', '0'], 'predict': [__file__]}.get(command, ())
    assert main([command, str(tmp_path), *more]) == 2
    caught = capsys.readouterr()
    assert caught.err == f'snnet {command}: {tmp_path} holds no stitchable network: there is no config.json\n'


@pytest.mark.parametrize(
    ('command', 'more'), [('adapt', '; the same command continues where it stopped'), ('info', '')]
)
def test_ctrl_c_is_said_in_a_sentence(command, more, folder, capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(f'snnet.cli.{command}.run', interrupted)
    assert main([command, str(folder)]) == 130
    assert capsys.readouterr().err == f'snnet {command}: interrupted{more}\n'


@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_has_help_under_its_own_name(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([command, '--help'])
    assert done.value.code == 0
    assert capsys.readouterr().out.startswith(f'usage: snnet {command} ')


def test_the_command_is_installed_and_lists_its_commands():
    script = Path(sys.executable).with_name('snnet')
    done = subprocess.run([script, '--help'], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert all(f'  {name}' in done.stdout for name in COMMANDS)


@pytest.mark.parametrize('argv', [[], ['fly', 'x']])
def test_what_is_no_command_is_refused(argv, capsys):
    with pytest.raises(SystemExit) as done:
        main(argv)
    assert done.value.code == 2
    assert 'usage: snnet' in capsys.readouterr().err
