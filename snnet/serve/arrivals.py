"""Times at which requests arrive: drawn from a seed in several patterns, or recorded."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..errors import SnnetError
from ..utils.seeds import key

SHAPES = ('poisson', 'bursts', 'diurnal', 'ramp', 'flash', 'heavy')
"""Patterns of drawn arrivals."""
FLASH = 5.0
"""Rate of a flash crowd, relative to the rest of the time."""
MOST = 5_000_000
"""Most requests of a simulation, bounded by memory and patience."""


def draw_arrivals(
    shape: str, rate: float, seconds: float, seed: int = 0, *, period: float = 10.0, share: float = 0.3
) -> np.ndarray:
    """Moments of arrival, rising.

    Args:
        shape: 'poisson' (one rate throughout), 'bursts' (all requests come in the first `share` of every period) or
            'diurnal' (the rate is a sine wave from 10 % to 190 % of its mean), 'ramp' (in every period it rises from 0
            to twice the mean), 'flash' (in one tenth of the time, in the middle, five times as many come) or 'heavy'
            (gaps of a Pareto distribution, whose variance is infinite). All but the last are Poisson processes.
        rate: mean requests per second.
        seconds: length.
        seed: of the draws.
        period: seconds of a burst and the pause after it, or of a day.
        share: of a period that a burst takes.

    Raises:
        SnnetError: an unknown shape, or numbers out of their range.
    """
    if shape not in SHAPES:
        raise SnnetError(f"arrivals are {', '.join(SHAPES)}, or a file of moments, not '{shape}'")
    for name, value in (('rate', rate), ('seconds', seconds), ('period', period)):
        if not 0 < value < math.inf:
            raise SnnetError(f'{name} of arrivals is a positive finite number, not {value}')
    if not 0 < share <= 1:
        raise SnnetError(f'the share of a period that a burst takes is above 0 and at most 1, not {share}')
    crowd = FLASH / (0.9 + 0.1 * FLASH)
    peaks = {'poisson': 1.0, 'bursts': 1 / share, 'diurnal': 1.9, 'ramp': 2.0, 'flash': crowd, 'heavy': 1.0}
    peak = peaks[shape] * rate
    if peak * seconds > MOST:
        raise SnnetError(f'{rate:g} requests per second for {seconds:g} s are more than {MOST} to simulate')
    random = np.random.default_rng(key(seed, f'arrivals {shape}'))
    if shape == 'heavy':
        moments = np.cumsum(random.pareto(2.0, round(1.5 * rate * seconds) + 100)) / rate  # gaps of mean 1, some long
        return moments[moments < seconds]
    moments = np.sort(random.uniform(0, seconds, random.poisson(peak * seconds)))
    if shape == 'bursts':
        return moments[moments % period < share * period]
    chances: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        'diurnal': lambda at: (1 + 0.9 * np.sin(2 * np.pi * at / period)) / 1.9,
        'ramp': lambda at: at / period % 1,
        'flash': lambda at: np.where(np.abs(at / seconds - 0.5) < 0.05, 1.0, 1 / FLASH),
    }
    chance = chances.get(shape)
    return moments if chance is None else moments[random.random(len(moments)) < chance(moments)]


def read_arrivals(path: Path) -> np.ndarray:
    """Times of arrival from a text file: one per line in seconds, the first value of lines with commas.

    Empty lines and a first line of names are passed over; the earliest moment becomes 0. Order does not matter.

    Raises:
        SnnetError: the file cannot be read, holds no moments, too many, or a line that is none.
    """
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else 'it is not a text file'
        raise SnnetError(f'the arrivals in {path} cannot be read: {reason}') from None
    moments: list[float] = []
    for number, line in enumerate(lines, 1):
        text = line.split(',')[0].strip().strip('"')
        try:
            moment = float(text)
        except ValueError:
            if not line.strip() or (number == 1 and len(lines) > 1):
                continue
            raise SnnetError(f"line {number} of {path} is not a time in seconds: '{line.strip()[:60]}'") from None
        if not math.isfinite(moment):
            raise SnnetError(f"line {number} of {path} is not a time in seconds: '{line.strip()[:60]}'")
        moments.append(moment)
    if not 0 < len(moments) <= MOST:
        raise SnnetError(f'{path} holds {len(moments)} arrivals; between 1 and {MOST} can be simulated')
    sorted_moments = np.sort(np.asarray(moments))
    since_first: np.ndarray = sorted_moments - sorted_moments[0]
    return since_first
