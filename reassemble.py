"""Reassembles a new network from the blocks of a zoo, under a budget (DeRy).

python reassemble.py --zoo resnet50,swin_tiny,vit_small --data-dir /imagenet --params 30e6 --flops 6e9
python train.py --anchors output/reassemble/net --freeze-anchors --data-dir /imagenet
"""

import sys

from snnet.config.parse import parse
from snnet.errors import MissingExtra, SnnetError
from snnet.reassembly.candidates import table
from snnet.reassembly.reassemble_settings import ReassembleSettings
from snnet.reassembly.search import Workshop


def main() -> int:
    """Runs the search; 2 for bad input, which is told in one sentence."""
    try:
        settings = parse(ReassembleSettings)
        shop = Workshop(settings)
        similarity = shop.similarity()
        partition = shop.partition(similarity)
        candidates = shop.candidates(similarity, partition)
        print(table(candidates, settings.rank))
        print('wrote', shop.write(candidates), 'and', shop.finish(candidates[0]))
        try:
            print('drew', *shop.draw(similarity, partition, candidates))
        except MissingExtra as error:
            print(f'no pictures: {error}', file=sys.stderr)
    except (SnnetError, OSError) as error:  # OSError: a disk that is full, a folder that may not be written
        print(f'reassemble.py: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('reassemble.py: interrupted; the same command takes up a similarity that is finished', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
