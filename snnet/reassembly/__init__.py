"""Deep model reassembly (DeRy): a new network from the blocks of a zoo, under a budget."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_package

if TYPE_CHECKING:
    from .assemble import Assembly, Ranking, Tables, map_costs, rank_assemblies, tabulate
    from .cka import linear_cka
    from .initialize_joins import initialize_seams
    from .naswot import CodeScore, naswot_score
    from .network import Reassembled, ReassembledAnchor, reassemble
    from .partition import Partition, partition_zoo
    from .plot import draw_assemblies, draw_partition, draw_similarity
    from .published_flops import count_published_flops
    from .similarity import Similarity, measure_similarity
    from .zoo import check_zoo, line_sizes
else:
    __getattr__, __dir__ = lazy_package(
        __name__,
        {
            'assemble': ['Assembly', 'Ranking', 'Tables', 'map_costs', 'rank_assemblies', 'tabulate'],
            'cka': ['linear_cka'],
            'initialize_joins': ['initialize_seams'],
            'naswot': ['CodeScore', 'naswot_score'],
            'network': ['Reassembled', 'ReassembledAnchor', 'reassemble'],
            'partition': ['Partition', 'partition_zoo'],
            'plot': ['draw_assemblies', 'draw_partition', 'draw_similarity'],
            'published_flops': ['count_published_flops'],
            'similarity': ['Similarity', 'measure_similarity'],
            'zoo': ['check_zoo', 'line_sizes'],
        },
    )

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
    'count_published_flops',
    'draw_assemblies',
    'draw_partition',
    'draw_similarity',
    'initialize_seams',
    'line_sizes',
    'linear_cka',
    'map_costs',
    'measure_similarity',
    'naswot_score',
    'partition_zoo',
    'rank_assemblies',
    'reassemble',
    'tabulate',
]
