from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tools.faults import check
from tools.faults.__main__ import _plan
from tools.faults.kinds import KINDS

ROOT = Path(__file__).parents[2]
FEW = [
    'kill -9 of all ranks, in a save',
    'SIGTERM to a random rank or all',
    'a bit flips in the newest checkpoint',
    'NaN loss on a random rank, once',
]


@pytest.mark.slow
def test_a_campaign_of_few_kinds_finds_no_defect(tmp_path):
    report = tmp_path / 'faults.md'
    command = [sys.executable, '-m', 'tools.faults', '--folder', tmp_path, '--report', report, '--kinds', *FEW]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(report.with_suffix('.json').read_text())
    assert sorted(result['kind'] for result in results) == sorted(FEW)
    assert not any(result['hang'] or not result['good'] for result in results)
    assert all(f'| {kind} | 1 |' in report.read_text() for kind in FEW)


def test_a_plan_holds_every_kind_and_is_the_same_for_the_same_seed():
    plan = list(_plan(200, [], 3))
    assert {name for name, _ in plan} == set(KINDS)
    assert len(KINDS) >= 30
    assert len(plan) >= 200
    assert plan == list(_plan(200, [], 3))
    assert len(list(_plan(None, [], 0))) == len(KINDS)


@pytest.fixture
def output(tmp_path):
    """A finished run's folder."""
    for folder in ('net', 'checkpoints/step-00000004'):
        (tmp_path / 'run' / folder).mkdir(parents=True)
    weights = {'weight': np.zeros(8, np.float32)}
    save_file(weights, tmp_path / 'run' / check.WEIGHTS)
    last = tmp_path / 'run' / 'checkpoints' / 'step-00000004'
    save_file(weights, last / 'state.safetensors')
    (last / 'state.json').write_text('{}')
    sums = [f'{check.digest(last / name)}  {name}\n' for name in ('state.json', 'state.safetensors')]
    (last / 'SHA256SUMS').write_text(''.join(sums))
    (tmp_path / 'run' / 'log.jsonl').write_text('{"step": 0}\n{"step": 1}\n')
    return tmp_path / 'run'


def flip(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    'spoil',
    [
        lambda run: flip(run / check.WEIGHTS),
        lambda run: (run / check.WEIGHTS).unlink(),
        lambda run: flip(run / 'checkpoints' / 'step-00000004' / 'state.safetensors'),
        lambda run: (run / 'checkpoints' / 'step-00000004' / 'state.json').unlink(),
        lambda run: (run / 'checkpoints' / 'step-00000004' / 'SHA256SUMS').write_text(''),
        lambda run: (run / 'checkpoints' / 'step-00000004' / 'more').touch(),
        lambda run: (run / 'checkpoints' / 'step-00000004').rename(run / 'checkpoints' / 'step-00000003'),
        lambda run: (run / 'log.jsonl').write_text('{"step": 0}\n'),
        lambda run: (run / '.state.json.17.tmp').touch(),
    ],
)
def test_what_a_fault_spoils_is_seen(output, tmp_path, spoil):
    reference = output.rename(tmp_path / 'reference')
    output = tmp_path / 'run'
    subprocess.run(['cp', '-r', reference, output], check=True)
    check.whole(output, reference)
    spoil(output)
    with pytest.raises(check.Violation):
        check.whole(output, reference)
