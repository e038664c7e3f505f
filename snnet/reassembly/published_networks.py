"""The reassembled networks that the DeRy paper published, by name."""

from __future__ import annotations

from ..errors import SnnetError
from ..net.create import load_zoo
from .build_reassembled import reassemble
from .legs_text import network_names
from .reassembled import Reassembled

PUBLISHED_NETWORKS = {
    'DeRy(4,10,3)': 'regnety_160[0:2] > mobilenetv3_large_100[5:6] > regnety_008_tv[7:12] > regnety_016[23:27]',
    'DeRy(4,30,6)': (
        'resnext50_32x4d.fb_swsl_ig1b_ft_in1k[0:3] > resnet50.tv_in1k[2:9] > resnet50.tv_in1k[5:6] > '
        'swin_small_patch4_window7_224.ms_in1k[22:27]'
    ),
    'DeRy(4,50,10)': 'resnet50[0:2] >2> regnety_032[3:9] > resnet101[15:30] > resnet50[11:16]',
    'DeRy(4,90,20)': (
        'resnext50_32x4d.fb_swsl_ig1b_ft_in1k[0:3] > swin_small_patch4_window7_224.ms_in1k[1:2] > '
        'swin_small_patch4_window7_224.ms_in1k[2:22] > swin_base_patch4_window7_224.ms_in22k_ft_in1k[17:27]'
    ),
}
"""Legs by the paper's name of a network, DeRy(K, millions of parameters, GFLOPs). It also has a DeRy(4,20,5)."""


def published_network(name: str, *, pretrained: bool, num_classes: int = 1000, seed: int = 0) -> Reassembled:
    """A network of the paper: new stem and head, published joins, blocks that run on the grid that arrives.

    Args:
        name: one of `PUBLISHED_NETWORKS`.
        pretrained: load the weights of the blocks.
        num_classes: width of the logits.
        seed: of the random weights of stem, joins and head.

    Raises:
        SnnetError: an unknown name, or weights that cannot be loaded.
    """
    if name not in PUBLISHED_NETWORKS:
        raise SnnetError(f"there is no published network '{name}', only {'; '.join(PUBLISHED_NETWORKS)}")
    legs = PUBLISHED_NETWORKS[name]
    zoo = load_zoo(network_names(legs), pretrained=pretrained, img_size=224)
    return reassemble(legs, zoo, stem='new', head='new', resample=False, num_classes=num_classes, seed=seed)
