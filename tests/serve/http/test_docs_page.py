"""The commands and the client of the page on serving, against a service on a port of this machine."""

from __future__ import annotations

import json
import shutil
import subprocess

import numpy as np
import pytest

from tests.helpers.documents import ROOT, blocks, commands
from tests.helpers.served import live, npy, picture, tiny_net

MARK = 'test_docs_page.py'
BLOCKS = [block for block in blocks(ROOT / 'docs' / 'serve.md') if MARK in block.not_run]


@pytest.fixture(scope='module')
def address():
    with live(tiny_net('NET')) as url:
        yield url.removeprefix('http://')


@pytest.mark.skipif(shutil.which('curl') is None, reason='curl is not installed')
def test_the_commands_of_curl(address, tmp_path):
    (tmp_path / 'picture.jpg').write_bytes(picture('JPEG'))
    (tmp_path / 'other.png').write_bytes(picture())
    (tmp_path / 'images.npy').write_bytes(npy(np.zeros((2, 3, 32, 32), np.float32)))
    (block,) = (block for block in BLOCKS if block.language == 'bash')
    counts = []
    for words in commands(block):
        words = [word.replace('127.0.0.1:8000', address).replace('=40', '=20000') for word in words]
        done = subprocess.run([*words, '--silent'], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        counts.append(len(json.loads(done.stdout)['results']))
    assert counts == [1, 2, 2]


@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # of what the client imports
def test_the_client_of_triton(address):
    pytest.importorskip('tritonclient.http', reason='needs tritonclient[http]')
    (block,) = (block for block in BLOCKS if block.language == 'python')
    names: dict = {}
    exec(block.text.replace('127.0.0.1:8000', address), names)
    assert names['logits'].shape == (2, 7)
    assert names['stitches'].shape == (2,)
    names['client'].close()
