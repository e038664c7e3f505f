from __future__ import annotations

import os

import pytest

from snnet import SnnetError
from snnet.utils.read_limited import read_limited


def test_what_is_no_file_or_too_large_is_refused_at_once(tmp_path):
    """A pipe would wait for somebody to write, and a device never ends."""
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'zeros').symlink_to('/dev/zero')
    (tmp_path / 'folder').mkdir()
    with open(tmp_path / 'sparse', 'wb') as file:
        file.truncate(1 << 40)
    for name, said in (
        ('pipe', 'is not a regular file'),
        ('zeros', 'is not a regular file'),
        ('folder', 'directory'),
        ('sparse', 'has more than 67,108,864 bytes'),
    ):
        with pytest.raises(SnnetError, match=said):
            read_limited(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_limited(tmp_path / 'nothing')
    (tmp_path / 'text').write_text('abc')
    assert read_limited(tmp_path / 'text', 3) == b'abc'
