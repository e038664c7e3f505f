"""Trains a stitchable network.

python train.py --config configs/debug.yaml
python train.py --from deit_tiny,deit_small --data-dir my_images
torchrun --nproc_per_node=8 train.py --anchors deit_tiny,deit_small,deit_base --data-dir /imagenet
"""

import sys

from snnet.config.parse import parse
from snnet.errors import SnnetError, in_words
from snnet.training.recipes import IMPLIED, RECIPES
from snnet.training.train_settings import TrainSettings
from snnet.training.trainer import train


def main() -> int:
    """Runs the training; returns the exit code, which is 2 for bad input."""
    try:
        train(parse(TrainSettings, recipes=RECIPES, implied=IMPLIED))
    except (SnnetError, OSError) as error:  # OSError: a disk that is full, a folder that may not be written
        print(f'train.py: {in_words(error)}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # Ctrl-C pressed twice
        print('train.py: interrupted; the same command continues from the last checkpoint', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
