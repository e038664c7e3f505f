"""Evaluates every stitch of a saved net in one pass over the images and draws accuracy over FLOPs.

python eval_stitches.py output/train/net --data-dir /imagenet
python eval_stitches.py published_checkpoint.pth --data-dir /imagenet --stitches 0-2 --confusion 2
torchrun --nproc_per_node=8 eval_stitches.py output/train/net --data-dir /imagenet --amp
"""

import os
import sys

from snnet.budget.frontier import frontier_table
from snnet.budget.plot import draw_curve
from snnet.config.parse import parse
from snnet.errors import MissingExtra, SnnetError, in_words
from snnet.evaluation.eval_settings import EvalSettings
from snnet.evaluation.evaluate import evaluate
from snnet.evaluation.hits import HITS, read_hits
from snnet.evaluation.paired_difference import best_against_anchor


def main() -> int:
    """Runs the evaluation; returns the exit code, which is 2 for bad input."""
    try:
        net, output = evaluate(parse(EvalSettings, positional='net'))
    except (SnnetError, OSError) as error:  # OSError: a disk that is full, a folder that may not be written
        print(f'eval_stitches.py: {in_words(error)}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('eval_stitches.py: interrupted; the same command continues where it stopped', file=sys.stderr)
        return 130
    if os.environ.get('RANK', '0') == '0':
        print(frontier_table(net.records))
        print(best_against_anchor(net.records, read_hits(output / HITS)) or 'no stitch to compare with an anchor')
        print('wrote', output / 'stitches.jsonl', *sorted(output.glob('c*.csv')))
        try:
            print('wrote', *draw_curve(net.records, output / 'curve', net.title))
        except MissingExtra as error:
            print(f'no curve: {error}', file=sys.stderr)
    return 0


if __name__ == '__main__':
    sys.exit(main())
