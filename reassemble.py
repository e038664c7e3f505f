"""Reassembles a new network from the blocks of a zoo, under a budget (DeRy).

python reassemble.py --zoo resnet50,swin_tiny,vit_small --data-dir /imagenet --params 30e6 --flops 6e9
python train.py --from output/reassemble/net --data-dir /imagenet
"""

import sys

from snnet.config.parse import parse
from snnet.errors import MissingExtra, SnnetError, in_words
from snnet.reassembly.candidate import format_candidates
from snnet.reassembly.reassemble_settings import ReassembleSettings
from snnet.reassembly.search import Search


def main() -> int:
    """Runs the search; returns 2 after one sentence about bad input."""
    try:
        settings = parse(ReassembleSettings)
        search = Search(settings)
        if settings.assembly.legs:
            print('wrote', search.finish(settings.assembly.legs))
            return 0
        similarity = search.similarity()
        partition = search.partition(similarity)
        candidates = search.candidates(similarity, partition)
        print(format_candidates(candidates, settings.assembly.rank))
        print('wrote', search.write(candidates), 'and', search.finish(search.pick(candidates)))
        try:
            print('drew', *search.draw(similarity, partition, candidates))
        except MissingExtra as error:
            print(f'no pictures: {error}', file=sys.stderr)
    except (SnnetError, OSError) as error:  # OSError: a full disk, a folder without write permission
        print(f'reassemble.py: {in_words(error)}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('reassemble.py: interrupted; the same command reuses a similarity that is finished', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
