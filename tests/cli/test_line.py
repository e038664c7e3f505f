from __future__ import annotations

from snnet.cli.main import main


def test_a_line_is_listed_with_position_module_grid_channels_and_parameters(capsys):
    assert main(['line', 'test_resnet', '--img-size', '64']) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ['position', 'module', 'grid', 'channels', 'parameters']
    assert [row.split()[0] for row in rows] == [str(i) for i in range(len(rows))]
    assert rows[0].split()[1:4] == ['layer1.0', '16x16', '32']
    assert rows[-1].split()[1] == 'head'


def test_bad_names_and_sizes_are_one_sentence(capsys):
    assert main(['line', 'test_resnt']) == 2
    assert "unknown network 'test_resnt'; did you mean test_resnet" in capsys.readouterr().err
    assert main(['line', 'test_resnet', '--img-size', '0']) == 2
    assert 'img_size is at least 1, not 0' in capsys.readouterr().err
