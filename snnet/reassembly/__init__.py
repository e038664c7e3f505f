"""Deep model reassembly (DeRy): a new network from the blocks of a zoo, under a budget."""

from .assemble import (
    Assembly,
    Ranking,
    Tables,
    map_costs,
    rank_assemblies,
    tabulate,
)
from .cka import cka
from .initialize_joins import initialize_seams
from .naswot import CodeScore, naswot
from .network import Reassembled, ReassembledAnchor, reassemble
from .partition import Partition, partition
from .plot import draw_assemblies, draw_partition, draw_similarity
from .published_flops import published_flops
from .similarity import Similarity, measure_similarity
from .zoo import check_zoo, line_sizes

__all__ = [
    'Assembly',
    'CodeScore',
    'Partition',
    'Ranking',
    'Reassembled',
    'ReassembledAnchor',
    'Similarity',
    'Tables',
    'check_zoo',
    'cka',
    'draw_assemblies',
    'draw_partition',
    'draw_similarity',
    'initialize_seams',
    'line_sizes',
    'map_costs',
    'measure_similarity',
    'naswot',
    'partition',
    'published_flops',
    'rank_assemblies',
    'reassemble',
    'tabulate',
]
