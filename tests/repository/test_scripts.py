from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.scripts import Script, run_script

ROOT = Path(__file__).parents[2]
DEBUG = ['--config', str(ROOT / 'configs' / 'debug.yaml')]


def rows_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope='module')
def debug_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('debug') / 'run'
    return folder, run_script('train.py', *DEBUG, '--output', folder)


def test_the_debug_config_trains_and_evaluates_and_says_how_to_go_on(debug_run):
    folder, done = debug_run
    assert 'next: python eval_stitches.py' in done.stderr
    assert 'left' in done.stderr
    evaluated = run_script('eval_stitches.py', folder / 'net', '--dataset', 'generated/16', '--workers', '0')
    assert '* anchors' in evaluated.stdout
    names = {path.name for path in (folder / 'net' / 'evaluation').iterdir()}
    assert names == {'stitches.jsonl', 'hits.safetensors', 'classes.csv', 'curve.png', 'curve.svg'}
    assert [row['id'] for row in rows_of(folder / 'net' / 'evaluation' / 'stitches.jsonl')] == list(range(18))


@pytest.mark.parametrize(
    ('command', 'hint'),
    [
        (['train.py'], '--anchors'),
        (['train.py', '--anchors', 'deit_tinny,deit_small'], 'did you mean'),
        (['train.py', '--anchors', 'test_vit=missing.safetensors,test_vit2'], 'missing.safetensors'),
        (['train.py', '--config', 'missing.yaml'], 'missing.yaml'),
        (['train.py', '--anchors', 'test_vit,test_vit2'], 'no weights for test_vit.*test_vit=FILE.*--no-pretrained'),
        (['eval_stitches.py', 'missing'], "there is no folder 'missing', and a repository id on the Hub"),
    ],
)
def test_bad_input_ends_with_one_sentence_and_exit_code_2(tmp_path, command, hint):
    done = run_script(*command, '--output', tmp_path / 'out', check=False)
    assert done.returncode == 2
    message = done.stderr.strip().splitlines()[-1]
    assert 'Traceback' not in done.stderr
    assert re.search(hint, message), message
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_two_processes_initialize_as_one_does(debug_run, tmp_path):
    one, two = tmp_path / 'one', tmp_path / 'two'
    run_script('train.py', *DEBUG, '--output', one, '--epochs', '0')
    run_script('train.py', *DEBUG, '--output', two, '--epochs', '0', ranks=2)
    first, second = (load_file(folder / 'net' / 'model.safetensors') for folder in (one, two))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_processes_that_are_told_to_end_lose_no_step_and_go_on_with_the_same_command(tmp_path):
    command = ['train.py', *DEBUG, '--stitch-per-rank', '--dataset', 'generated/40', '--batch-size', '4']
    command += ['--epochs', '4', '--log-interval', '1', '--teacher', 'none', '--output', tmp_path]
    process = Script(*command, ranks=2)
    log = tmp_path / 'log.jsonl'
    while process.running and not (log.exists() and log.stat().st_size):
        time.sleep(0.01)
    process.terminate()
    told = process.end().stderr
    step = int(re.search(r'stopped after step (\d+) of 20; the same command continues', told)[1])
    assert len(rows_of(log)) == step
    assert not (tmp_path / 'net').exists()
    assert f'continues after step {step} of 20' in run_script(*command, ranks=2).stderr
    assert [row['step'] for row in rows_of(log)] == list(range(20))


@pytest.mark.slow
def test_two_processes_evaluate_as_one_does(debug_run, tmp_path):
    folder, _ = debug_run
    options = ['--dataset', 'generated/21', '--batch-size', '4', '--workers', '0', '--stitches', '0-5']
    for ranks in (1, 2):
        run_script('eval_stitches.py', folder / 'net', *options, '--output', tmp_path / str(ranks), ranks=ranks)
    one, two = (rows_of(tmp_path / str(ranks) / 'stitches.jsonl') for ranks in (1, 2))
    assert [row['n'] for row in two] == [21] * 6
    first, second = (load_file(tmp_path / str(ranks) / 'hits.safetensors') for ranks in (1, 2))
    assert torch.equal(first['hits'], second['hits'])
    for a, b in zip(one, two, strict=True):
        assert a['loss'] == pytest.approx(b['loss'], abs=1e-9)
        assert {k: a[k] for k in ('id', 'top1', 'top5', 'of')} == {k: b[k] for k in ('id', 'top1', 'top5', 'of')}
