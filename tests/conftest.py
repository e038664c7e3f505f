from __future__ import annotations

import inspect
import logging
import os
import re
from functools import cache

os.environ['HF_HUB_OFFLINE'] = '1'

import pytest
import torch

torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', '1')))

_COMPARES = re.compile(r'assert_close|allclose|approx\(|distance\(|farthest\(|rounding\(')


def pytest_addoption(parser):
    parser.addoption(
        '--device',
        choices=('cuda', 'cpu', 'pretended'),
        help='of the tests marked gpu: a GPU (the default; without one, skipped), the CPU, or helpers/pretend_gpu.py',
    )


@cache
def _compares(function):
    return _COMPARES.search(inspect.getsource(function)) is not None


def pytest_collection_modifyitems(config, items):
    """Marks the tests that compare numbers with a tolerance, and the slow cases of sweeps."""
    if not any('::' in argument for argument in config.args):  # all cases of a sweep are there
        _check_cases(items)
    for item in items:
        if _compares(item.function):
            item.add_marker(pytest.mark.tolerance)
        quick = item.get_closest_marker('quick')
        slow_for = item.get_closest_marker('slow_for')
        if (quick and item.callspec.id not in quick.args) or (slow_for and item.callspec.id in slow_for.args):
            item.add_marker(pytest.mark.slow)


def _check_cases(items):
    """Refuses a marker that names a case that its sweep does not have: it would mark others, or none, in silence."""
    there = {(item.path, item.originalname, item.callspec.id) for item in items if hasattr(item, 'callspec')}
    for item in items:
        for marker in (item.get_closest_marker('quick'), item.get_closest_marker('slow_for')):
            unknown = (
                [case for case in marker.args if (item.path, item.originalname, case) not in there] if marker else []
            )
            if unknown:
                raise pytest.UsageError(f'{item.nodeid}: {marker.name} names cases that are not there: {unknown}')


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
