"""Deep model reassembly (DeRy): builds a new network from the blocks of a zoo of networks, under a budget."""

from typing import TYPE_CHECKING

from ..saving.anchor_makers import AnchorMaker, register_maker
from ..utils.lazy import lazy_package
from .config_name import REASSEMBLED

if TYPE_CHECKING:
    from .assembly import Assembly
    from .assembly_tables import AssemblyTables, map_costs, tabulate
    from .build_reassembled import reassemble
    from .cka import linear_cka
    from .fit_joins import initialize_joins
    from .join_layer import JoinLayer
    from .legs_text import parse_legs
    from .line_table import LineRow, format_line, line_rows
    from .naswot import CodeScore, naswot_score
    from .partition import Partition, partition_zoo
    from .plot import draw_assemblies, draw_partition, draw_similarity
    from .published_flops import count_published_flops
    from .published_networks import PUBLISHED_NETWORKS, published_network
    from .ranking import Ranking, rank_assemblies
    from .reassembled import Reassembled
    from .reassembled_anchor import ReassembledAnchor
    from .similarity import Similarity
    from .zoo import check_zoo, line_sizes
    from .zoo_similarity import measure_similarity
else:
    __getattr__, __dir__ = lazy_package(
        __name__,
        {
            'assembly': ['Assembly'],
            'assembly_tables': ['AssemblyTables', 'map_costs', 'tabulate'],
            'build_reassembled': ['reassemble'],
            'cka': ['linear_cka'],
            'fit_joins': ['initialize_joins'],
            'join_layer': ['JoinLayer'],
            'legs_text': ['parse_legs'],
            'line_table': ['LineRow', 'format_line', 'line_rows'],
            'naswot': ['CodeScore', 'naswot_score'],
            'partition': ['Partition', 'partition_zoo'],
            'plot': ['draw_assemblies', 'draw_partition', 'draw_similarity'],
            'published_flops': ['count_published_flops'],
            'published_networks': ['PUBLISHED_NETWORKS', 'published_network'],
            'ranking': ['Ranking', 'rank_assemblies'],
            'reassembled': ['Reassembled'],
            'reassembled_anchor': ['ReassembledAnchor'],
            'similarity': ['Similarity'],
            'zoo': ['check_zoo', 'line_sizes'],
            'zoo_similarity': ['measure_similarity'],
        },
    )


def _load_maker() -> AnchorMaker:
    """What builds the reassembled networks of a saved net, loaded only when one is read."""
    from .build_reassembled import rebuild

    return rebuild


register_maker(REASSEMBLED, _load_maker)

__all__ = [
    'Assembly',
    'AssemblyTables',
    'CodeScore',
    'JoinLayer',
    'LineRow',
    'PUBLISHED_NETWORKS',
    'Partition',
    'Ranking',
    'Reassembled',
    'ReassembledAnchor',
    'Similarity',
    'check_zoo',
    'count_published_flops',
    'draw_assemblies',
    'draw_partition',
    'draw_similarity',
    'format_line',
    'initialize_joins',
    'line_rows',
    'line_sizes',
    'linear_cka',
    'map_costs',
    'measure_similarity',
    'naswot_score',
    'parse_legs',
    'partition_zoo',
    'published_network',
    'rank_assemblies',
    'reassemble',
    'tabulate',
]
