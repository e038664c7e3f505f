from __future__ import annotations

import pytest
import torch
from torch import nn

import snnet
from snnet.anchors.flops import part_flops, trace, uncounted
from tests.helpers.families import FAMILIES


class Hidden(nn.Module):
    """Multiplies by an operation that fvcore does not count."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, width, width))

    def forward(self, x):
        return torch.addbmm(x[0], x, self.weight.expand(len(x), -1, -1))[None]


def test_an_operation_that_cannot_be_counted_is_found():
    class Flat(Hidden):
        def forward(self, x):
            return super().forward(x[0])

    assert uncounted(trace(Flat(8), (3, 8, 8))) == {'aten::addbmm': 1}


def test_a_warning_names_the_module_with_uncountable_operations(caplog):
    anchor = snnet.as_anchor(FAMILIES['vit'].small(), 'hidden', input_size=(3, 32, 32))
    anchor.model.blocks[1].mlp = nn.Sequential(nn.Identity(), Hidden(16))
    part_flops(anchor)
    assert 'hidden: FLOPs leave out aten::addbmm in blocks.1.mlp.1, which cannot be counted' in caplog.text


def test_fused_attention_counts_as_its_two_products():
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x):
            q, k, v = x[:, :, :5], x[:, :, 5:], (x[:, :, 5:] * self.scale)[..., :2]
            return nn.functional.scaled_dot_product_attention(q, k, v)

    analysis = trace(Fused(), (3, 12, 4))
    assert analysis.by_operator()['scaled_dot_product_attention'] == 3 * 5 * 7 * (4 + 2)


class Encoder(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.num_classes = 10
        self.patches = nn.Conv2d(3, width, 8, 8)
        options = {'batch_first': True, 'norm_first': True, 'activation': 'gelu', 'dropout': 0.0}
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(width, 4, 4 * width, **options) for _ in range(4)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.patches(x).flatten(2).transpose(1, 2))).mean(1))


# products as torch's FlopCounterMode counts them on the slow path, halved; nine norms of five operations per element
@pytest.mark.parametrize(('width', 'products'), [(32, 4_587_840), (64, 15_467_136)])
def test_attention_inside_torchs_own_layers_is_counted(width, products, caplog):
    anchor = snnet.as_anchor(Encoder(width).eval(), 'encoder', input_size=(3, 64, 64))
    assert part_flops(anchor).whole == products + 9 * 5 * 64 * width
    assert not caplog.text


@pytest.mark.parametrize('need_weights', [True, False])
@pytest.mark.parametrize('self_attention', [True, False])
def test_multihead_attention_counts_its_four_maps_and_two_products(need_weights, self_attention):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            x = x[0]
            key = x if self_attention else x.clone()
            return self.attention(x, key, key, need_weights=need_weights)[0]

    analysis = trace(Attention(), (2, 6, 8))  # two sequences of six tokens
    assert analysis.total() == 2 * (4 * 6 * 8 * 8 + 2 * 6 * 6 * 8)
    assert uncounted(analysis) == {}


def test_counting_leaves_the_fast_path_as_it_was():
    before = torch.backends.mha.get_fastpath_enabled()
    trace(Encoder(32), (3, 64, 64))
    assert torch.backends.mha.get_fastpath_enabled() is before
