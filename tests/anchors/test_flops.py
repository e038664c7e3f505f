from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import snnet
from snnet import SnnetError
from snnet.anchors.flops import part_flops, trace, uncounted
from tests.helpers.families import FAMILIES


class Hidden(nn.Module):
    """Multiplies by an operation that fvcore does not count."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, width, width))

    def forward(self, x):
        return x @ torch.linalg.matrix_power(self.weight, 3)


def test_an_operation_that_cannot_be_counted_is_found():
    assert uncounted(trace(Hidden(8), (3, 8, 8))) == {'aten::linalg_matrix_power': 1}


def test_a_function_with_its_own_gradient_is_found():
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            return x @ weight

    class Opaque(Hidden):
        def forward(self, x):
            return Product.apply(x, self.weight)

    assert uncounted(trace(Opaque(8), (3, 8, 8))) == {'prim::PythonOp.Product': 1}


HIDING = {
    'aten::stft': lambda x: torch.stft(x.flatten(), 4, window=torch.ones(4), return_complex=True).abs(),
    'aten::fft_fft2': lambda x: torch.fft.fft2(x).real,
    'aten::cdist': lambda x: torch.cdist(x, x),
    'aten::cosine_similarity': lambda x: nn.functional.cosine_similarity(x, x),
    'aten::pairwise_distance': lambda x: nn.functional.pairwise_distance(x, x),
    'aten::kron': lambda x: torch.kron(x[0, 0], x[0, 0]),
    'aten::cov': lambda x: torch.cov(x[0, 0]),
    'aten::linalg_svdvals': torch.linalg.svdvals,
    'aten::_int_mm': lambda x: torch._int_mm(*2 * [torch.ones(32, 32, dtype=torch.int8)]),
}


@pytest.mark.parametrize('op', HIDING)
def test_operations_that_multiply_and_are_not_counted_are_found(op):
    class Opaque(Hidden):
        def forward(self, x):
            return HIDING[op](self.weight * x)

    assert uncounted(trace(Opaque(8), (3, 8, 8))) == {op: 1}


def test_operations_without_products_of_vectors_are_not_suspected():
    class Harmless(Hidden):
        def forward(self, x):
            return torch.addcmul(x, x, self.weight).logsumexp(1) + x.norm(dim=1)

    assert uncounted(trace(Harmless(8), (3, 8, 8))) == {}


def test_a_network_that_cannot_be_traced_is_refused_in_a_sentence():
    class Constant(Hidden):
        def forward(self, x):
            return 1

    with pytest.raises(SnnetError, match='FLOPs cannot be counted, because tracing the network fails with'):
        trace(Constant(8), (3, 8, 8))


def test_a_warning_names_the_module_with_uncountable_operations(caplog):
    anchor = snnet.as_anchor(FAMILIES['vit'].small(), 'hidden', input_size=(3, 32, 32))
    anchor.model.blocks[1].mlp = nn.Sequential(nn.Identity(), Hidden(16))
    part_flops(anchor)
    assert 'hidden: FLOPs leave out aten::linalg_matrix_power in blocks.1.mlp.1, which cannot be counted' in caplog.text


PRODUCTS = {
    'einsum': lambda x, w: torch.einsum('nchw,wk->nkch', x, w),
    'einsum of the whole': lambda x, w: torch.einsum('nchw,kw', x, w),
    'einsum with dots': lambda x, w: torch.einsum('...hw,wk->...hk', x, w),
    'einsum of a matrix that is repeated': lambda x, w: torch.einsum('nchw,xwk->nchk', x, w[None]),
    'einsum of three': lambda x, w: torch.einsum('nchw,wk,nchk->nck', x, w, x),
    'einsum of four': lambda x, w: torch.einsum('nchw,wk,kl,nchl->nhl', x, w, w, x),
    'einsum that sums one first': lambda x, w: torch.einsum('nchw,wk->nk', x, w),
    'einsum without a sum': lambda x, w: torch.einsum('nchw,wk->nchwk', x, w),
    'tensordot': lambda x, w: torch.tensordot(x, w, 1),
    'tensordot over two': lambda x, w: torch.tensordot(x, torch.stack([w, w]), ([2, 3], [1, 2])),
    'inner': lambda x, w: torch.inner(x, w[:3]),
    'transposed': lambda x, w: torch.nn.functional.conv_transpose2d(x, w[:3, :, None, None], stride=2),
}


@pytest.mark.parametrize('name', PRODUCTS)
def test_products_count_what_torch_counts_to_the_unit(name):
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(13, 13))

        def forward(self, x):
            return PRODUCTS[name](x, self.weight)

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Product()(torch.zeros(1, 3, 13, 13))
    analysis = trace(Product(), (3, 13, 13))
    assert analysis.total() == counter.get_total_flops() / 2
    assert uncounted(analysis) == {}


@pytest.mark.parametrize(
    ('make', 'flops'),
    [
        (lambda: nn.LSTM(9, 5, 2, batch_first=True), 7 * 4 * (9 * 5 + 5 * 5 + 5 * 5 + 5 * 5)),
        (lambda: nn.LSTM(9, 5, proj_size=2, batch_first=True), 7 * (4 * (9 * 5 + 2 * 5) + 2 * 5)),
        (lambda: nn.GRU(9, 5, bidirectional=True, batch_first=True), 2 * 7 * 3 * (9 * 5 + 5 * 5)),
        (lambda: nn.RNN(9, 5, batch_first=True), 7 * (9 * 5 + 5 * 5)),
        (lambda: nn.Bilinear(9, 9, 5), 7 * 9 * 9 * 5),
    ],
)
def test_layers_that_run_as_one_operation_count_what_they_multiply(make, flops):
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = make()

        def forward(self, x):
            x = x[:, 0]
            return self.layer(x, x) if isinstance(self.layer, nn.Bilinear) else self.layer(x)[0]

    analysis = trace(Layer(), (1, 7, 9))
    assert (analysis.total(), uncounted(analysis)) == (flops, {})


def test_products_of_vectors_count_each_number_once():
    class Vectors(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 5))

        def forward(self, x):
            line, sums = x[0, 0, 0], torch.addbmm(x[0, 0], x[0], x[0].transpose(1, 2) @ x[0])
            products = torch.mv(self.weight, line).sum() + torch.addmv(line[:4], self.weight, line).sum()
            return products + torch.dot(line, line) + sums

    assert trace(Vectors(), (4, 2, 5)).total() == 4 * 5 + 4 * 5 + 5 + 4 * 5 * 2 * 5 + 4 * 2 * 5 * 5


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
