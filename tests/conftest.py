from __future__ import annotations

import logging
import os

os.environ['HF_HUB_OFFLINE'] = '1'

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def quiet_logger():
    """Undoes what a script set up: `caplog` sees the package's messages again."""
    yield
    logger = logging.getLogger('snnet')
    logger.propagate = True
    logger.setLevel(logging.NOTSET)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
