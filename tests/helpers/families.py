"""A small network or two of every family, with random weights that leave no part without effect."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from functools import cache, partial
from typing import Any, NamedTuple

import pytest
import timm
import torch
from timm.models.levit import Levit, LevitDistilled
from torch import Tensor, nn

import snnet

CLASSES = 7


class Family(NamedTuple):
    """Two networks that share an adapter, and the side of their images."""

    size: int
    small: Callable[..., nn.Module]
    large: Callable[..., nn.Module]


def _make(name: str, **args: Any) -> nn.Module:
    return timm.create_model(name, **{'num_classes': CLASSES, **args})


def vit(width: int = 16, depth: int = 4, name: str = 'vit_tiny_patch16_224', **args: Any) -> nn.Module:
    return _make(name, **{'img_size': 32, 'patch_size': 8, 'num_heads': 2, 'embed_dim': width, 'depth': depth, **args})


def swin(width: int = 8, deep: int = 4, name: str = 'swin_tiny_patch4_window7_224', **args: Any) -> nn.Module:
    sizes = {'img_size': 64, 'window_size': 4, 'embed_dim': width, 'depths': (2, 2, deep, 2), 'num_heads': (1, 2, 2, 4)}
    return _make(name, **sizes, **args)


def resnet(name: str, layers: tuple[int, ...], width: int = 8, **args: Any) -> nn.Module:
    return _make(name, layers=layers, channels=tuple(width * k for k in (1, 2, 3, 4)), **args)


def levit(kind: type[Levit], width: int, use_conv: bool = False, **args: Any) -> nn.Module:
    sizes = {'embed_dim': (width, width + 8, width + 16), 'key_dim': 8, 'depth': (2, 3, 2), 'num_heads': (2, 2, 3)}
    return kind(**{'img_size': 64, 'num_classes': CLASSES, 'use_conv': use_conv, **sizes, **args})


def convnext(name: str, depths: tuple[int, ...], width: int = 8, **args: Any) -> nn.Module:
    return _make(name, depths=depths, dims=tuple(width * k for k in (1, 2, 3, 4)), **args)


def regnet(name: str, depth: int, w0: int, wa: float, wm: float, **args: Any) -> nn.Module:
    return _make(name, depth=depth, w0=w0, wa=wa, wm=wm, group_size=8, **args)


_bare = {'class_token': False, 'global_pool': 'avg'}

FAMILIES = {
    'vit': Family(32, partial(vit, 16), partial(vit, 24, num_heads=3)),
    'vit of other depth': Family(32, partial(vit, 16), partial(vit, 24, 6)),
    'vit without class token': Family(32, partial(vit, 16, **_bare), partial(vit, 24, pre_norm=True, **_bare)),
    'registers': Family(
        32, partial(vit, 16, reg_tokens=3, no_embed_class=True), partial(vit, 24, reg_tokens=3, global_pool='map')
    ),
    'deit distilled': Family(
        32,
        partial(vit, 16, name='deit_tiny_distilled_patch16_224'),
        partial(vit, 24, name='deit_tiny_distilled_patch16_224'),
    ),
    'deit-3': Family(
        32, partial(vit, 16, name='deit3_small_patch16_224'), partial(vit, 24, name='deit3_small_patch16_224')
    ),
    'swin': Family(64, partial(swin, 8), partial(swin, 16, 6)),
    'swin v2': Family(
        64, partial(swin, 8, name='swinv2_tiny_window8_256'), partial(swin, 16, name='swinv2_tiny_window8_256')
    ),
    'resnet': Family(64, partial(resnet, 'resnet18', (2, 2, 2, 2)), partial(resnet, 'resnet50', (2, 3, 4, 2))),
    'resnet kin': Family(
        64,
        partial(resnet, 'resnet18', (1, 2, 3, 1), stem_type='deep', stem_width=8, avg_down=True),
        partial(resnet, 'seresnet50', (1, 2, 3, 1), 16),
    ),
    'levit': Family(64, partial(levit, LevitDistilled, 16), partial(levit, Levit, 24)),
    'levit of convolutions': Family(64, partial(levit, Levit, 16, True), partial(levit, LevitDistilled, 24, True)),
    'convnext': Family(
        64,
        partial(convnext, 'convnext_atto', (2, 2, 3, 2)),
        partial(convnext, 'convnextv2_atto', (2, 2, 6, 2), 16),
    ),
    'regnet': Family(
        64, partial(regnet, 'regnetx_002', 9, 8, 6.0, 2.0), partial(regnet, 'regnety_002', 9, 16, 12.0, 2.0)
    ),
    'regnet z': Family(
        64,
        partial(regnet, 'regnetv_040', 8, 8, 4.0, 1.5),
        partial(regnet, 'regnetz_005', 12, 16, 8.0, 2.0, num_features=32),
    ),
}
TEST_MODELS = ('test_vit', 'test_vit2', 'test_vit3', 'test_resnet', 'test_convnext', 'test_convnext2')

_KIN = (
    'resnetblur50',
    'resnetaa34d',
    'res2net50_26w_4s',
    'resnest14d',
    'ecaresnet26t',
    'skresnet18',
    'resnext50_32x4d',
)

# name, image side and maker of every single network
NETWORKS = {
    'patch dropout': (32, partial(vit, patch_drop_rate=0.5)),
    'norm before pooling': (64, partial(convnext, 'convnext_atto', (1, 1, 2, 1), head_norm_first=True)),
    **{name: (64, partial(resnet, name, (1, 2, 1, 1), 16)) for name in _KIN},
    **{f'{name}, {which}': (f.size, getattr(f, which)) for name, f in FAMILIES.items() for which in ('small', 'large')},
    **{name: (160, partial(_make, name)) for name in TEST_MODELS},
}


def shake(network: nn.Module, seed: int = 0) -> nn.Module:
    """Adds noise to every parameter and statistic, so that no zero or one hides what a part does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        for name, buffer in network.named_buffers():
            if name.endswith('running_var'):
                buffer.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith('running_mean'):
                buffer.normal_(0, 0.1, generator=generator)
    return network


def images(size: int, count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def build(*makers: tuple[str, Callable[..., nn.Module]], size: int, **options: Any) -> snnet.StitchableNet:
    """A net of shaken anchors in eval mode, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        anchors = [
            snnet.as_anchor(shake(make()), name, input_size=(3, size, size), official=options.get('official', False))
            for name, make in makers
        ]
        return shake(snnet.create_stitchable_net(anchors, pretrained=False, **options), 1).eval()


def family_net(name: str, **options: Any) -> snnet.StitchableNet:
    family = FAMILIES[name]
    return build(('small', family.small), ('large', family.large), size=family.size, **options)


def three_vits(**options: Any) -> snnet.StitchableNet:
    """Three plain ViTs of depth 3, so that three-leg stitches exist."""
    makers = [(f'w{width}', partial(vit, width, 3)) for width in (16, 24, 32)]
    return build(*makers, size=32, **options)


def cross_net(**options: Any) -> snnet.StitchableNet:
    """A ResNet in front of a Swin: NCHW to NHWC."""
    return build(('cnn', FAMILIES['resnet'].small), ('swin', partial(swin, 24)), size=64, **options)


def _of_tokens(**options: Any) -> snnet.StitchableNet:
    makers = (('tokens', partial(levit, Levit, 16)), ('maps', partial(levit, Levit, 24, True)))
    return build(*makers, size=64, **options)


def _to_tokens(**options: Any) -> snnet.StitchableNet:
    end = partial(vit, 144, img_size=64, patch_size=16, num_heads=4, **_bare)
    return build(('cnn', partial(resnet, 'resnet18', (1, 2, 2, 1))), ('vit', end), size=64, **options)


def _two_ways(**options: Any) -> snnet.StitchableNet:
    makers = [(name, partial(vit, width, 3)) for name, width in (('small', 16), ('large', 24))]
    return build(*makers, size=32, direction='two_way', nearest=False, **options)


_NETS: dict[str, Callable[[], snnet.StitchableNet]] = {
    **{name: partial(family_net, name) for name in FAMILIES},
    'three legs': partial(three_vits, nearest=False),
    'official': partial(family_net, 'vit', official=True),
    'slow to fast': partial(family_net, 'swin', direction='slow_to_fast'),
    'two ways': _two_ways,
    'maps to windows': cross_net,
    'windows to maps': partial(cross_net, direction='slow_to_fast'),
    'tokens to maps': _of_tokens,
    'maps to tokens': _to_tokens,
}
NETS = tuple(_NETS)
"""Names of nets of every family, of every direction, and across layouts."""


@cache
def shared_net(name: str) -> snnet.StitchableNet:
    """One of `NETS`, made once: for tests that change nothing but gradients."""
    return _NETS[name]()


def swept(names: Iterable[str], quick: Container[str]) -> list[Any]:
    """Parameters of a sweep: some run in `make test`, all of them in `make test-all`."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


QUICK_NETS = ('vit', 'swin', 'resnet', 'levit', 'three legs', 'official', 'two ways', 'maps to windows')
QUICK_NETWORKS = (
    'patch dropout', 'resnest14d', 'vit, small', 'registers, large', 'swin, small', 'resnet, large', 'levit, small',
    'levit of convolutions, large', 'convnext, small', 'regnet, large', 'test_vit2',
)  # fmt: skip
every_net = pytest.mark.parametrize('name', swept(NETS, QUICK_NETS))
every_network = pytest.mark.parametrize('name', swept(NETWORKS, QUICK_NETWORKS))
