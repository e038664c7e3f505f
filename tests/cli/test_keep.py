from __future__ import annotations

import re
from dataclasses import replace

import pytest

from snnet import StitchableNet
from snnet.cli.main import main
from tests.helpers.families import _NETS


@pytest.fixture
def folder(tmp_path):
    def write(gain=None):
        """A saved net of equally accurate anchors, and two stitches that gain so many points over mixing them."""
        net = _NETS['vit']()
        if gain is not None:
            tops = [
                50.0 if record.anchor else 50.0 + gain if record.stitch in better(net) else 45.0
                for record in net.records
            ]
            net.records = [replace(record, top1=top1) for record, top1 in zip(net.records, tops, strict=True)]
        net.save_pretrained(tmp_path / 'net')
        return str(tmp_path / 'net')

    return write


def better(net):
    """Two of the stitches that cost less than the largest anchor, so that mixing can be compared with them."""
    largest = max(record.flops for record in net.records if record.anchor)
    return [record.stitch for record in net.records if not record.anchor and record.flops < largest][1:3]


def test_the_stitches_above_mixing_stay_and_the_frontier_with_them(folder, tmp_path, capsys):
    net = StitchableNet.from_pretrained(source := folder(gain=2.0))
    assert main(['keep', source, '--output', str(tmp_path / 'out')]) == 0
    smaller, kept = StitchableNet.from_pretrained(tmp_path / 'out'), [*range(len(net.anchors)), *better(net)]
    assert [str(stitch) for stitch in smaller.stitches] == [str(net.stitches[i]) for i in kept]
    assert [record.top1 for record in smaller.records] == [50.0] * len(net.anchors) + [52.0] * 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f'before:  {len(net.stitches) - len(net.anchors)} stitches beside 2 anchors')
    assert lines[1].startswith('after:   2 stitches beside 2 anchors')
    assert lines[0].rpartition('area')[2] == lines[1].rpartition('area')[2] != ''  # the frontier is the same


@pytest.mark.parametrize(
    ('gain', 'options', 'said'),
    [
        (None, (), 'run eval_stitches.py first, or name ids with --stitches'),
        (-1.0, (), r'none of \d+ stitches is more accurate than mixing its anchors: the best of them, .*loses 1.00'),
        (1.0, ('--stitches', '7,99'), "stitch ids are 0 to .*, but got '99'"),
    ],
)
def test_where_nothing_is_worth_keeping_nothing_is_written(folder, tmp_path, capsys, gain, options, said):
    assert main(['keep', folder(gain), '--output', str(tmp_path / 'out'), *options]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / 'out').exists()


def test_named_stitches_stay_without_accuracies(folder, tmp_path):
    source = folder()
    assert main(['keep', source, '--output', str(tmp_path / 'out'), '--stitches', '3,5']) == 0
    net, smaller = (StitchableNet.from_pretrained(path) for path in (source, tmp_path / 'out'))
    assert {str(stitch) for stitch in smaller.stitches} >= {str(net.stitches[i]) for i in (3, 5)}
    assert main(['keep', source, '--output', str(tmp_path / 'out'), '--stitches', '3']) == 2


def test_a_folder_that_the_system_refuses_is_named_without_an_error_number(folder, tmp_path, capsys):
    (tmp_path / 'link').symlink_to('nowhere')
    output = tmp_path / 'link' / 'out'
    assert main(['keep', folder(1.0), '--output', str(output), '--stitches', '3']) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"snnet keep: '{tmp_path / 'link'}")
    assert 'cannot be used: ' in error
    assert 'Errno' not in error
    assert not output.exists()
