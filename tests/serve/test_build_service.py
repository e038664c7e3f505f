from __future__ import annotations

import os

import pytest

from snnet.serve.build_service import CAPACITY_SETTING, build_service
from snnet.serve.serve_settings import ServeSettings
from tests.helpers.served import tiny_net


@pytest.mark.parametrize(('given', 'found'), [(None, '8192'), ('2048', '2048')])
def test_onednn_keeps_the_operations_of_all_batch_sizes_unless_told_otherwise(given, found, tmp_path, monkeypatch):
    monkeypatch.setenv(CAPACITY_SETTING, given or '')  # so that it is put back afterwards
    if given is None:
        monkeypatch.delenv(CAPACITY_SETTING)
    tiny_net().net.save_pretrained(tmp_path / 'net')
    build_service(ServeSettings(nets=[str(tmp_path / 'net')], worker='thread'))
    assert os.environ[CAPACITY_SETTING] == found
