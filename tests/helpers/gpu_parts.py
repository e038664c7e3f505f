"""Parts of benchmarks.gpu that end in all the ways in which a part can end."""

from __future__ import annotations

import os
import time

from benchmarks.gpu.part import Options, Report


def good(options: Options, report: Report) -> None:
    report.row('numbers', images_per_s=12345.6, way='a|b')
    with report.trying('the impossible'):
        raise ValueError('two\nlines')
    report.note('still here')


def raising(options: Options, report: Report) -> None:
    report.row('numbers', one=1)
    raise MemoryError('no room')


def endless(options: Options, report: Report) -> None:
    report.row('numbers', one=1)
    time.sleep(600)


def dying(options: Options, report: Report) -> None:
    os._exit(9)
