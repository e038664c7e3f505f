"""Scikit-learn's handwritten digits as folders of pictures, one per class, as anyone's pictures would lie there.

    python examples/digit_folders.py output/digits --each 40 --tests 500 --seed 0

Pictures have 8 pixels per side. The seed draws those to train with; the last of the data set are always the tests.
Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')


def write_pictures(output: Path, each: int, tests: int, seed: int) -> None:
    """Writes `each` pictures of every digit to train with, and the last `tests` of the data set to judge."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    last = len(digits.images) - tests
    order = np.random.default_rng(seed).permutation(last)
    chosen = [i for label in range(len(NAMES)) for i in order[digits.target[order] == label][:each]]
    for split, numbers in (('train', chosen), ('validation', range(last, len(digits.images)))):
        for i in numbers:
            path = output / split / NAMES[digits.target[i]] / f'{i}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((255 - digits.images[i] * 255 / 16).astype(np.uint8)).save(path)


def main() -> None:
    """Writes the folders."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('output', type=Path, help='folder to write')
    parser.add_argument('--each', type=int, default=40, help='training pictures of each digit (default: 40)')
    parser.add_argument('--tests', type=int, default=500, help='pictures to evaluate (default: 500)')
    parser.add_argument('--seed', type=int, default=0, help='draws the training pictures (default: 0)')
    given = parser.parse_args()
    write_pictures(given.output, given.each, given.tests, given.seed)


if __name__ == '__main__':
    main()
