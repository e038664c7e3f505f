from __future__ import annotations

import copy
import pickle
import random
from functools import cache, partial

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.levit import Levit
from torch import nn

import snnet
from snnet import Boundary, CannotStitch, SnnetError, as_anchor
from snnet.anchors.flops import trace, uncounted
from snnet.anchors.tracing.dataflow import cut_points
from snnet.anchors.tracing.traced_anchor import TracedAnchor
from snnet.anchors.weights import load_anchor
from tests.helpers.families import build, images, levit, shake, swept, swin
from tests.helpers.published_numbers import published_table

LINES = published_table('dery_zoo_lines')


def pvt(width=8, name='pvt_v2_b0', **args):
    widths = tuple(width * k for k in (1, 2, 3, 4))
    return timm.create_model(
        name, depths=(1, 2, 2, 1), embed_dims=widths, num_heads=(1, 2, 3, 4), num_classes=7, **args
    )


def xcit(**args):
    sizes = {'img_size': 64, 'embed_dim': 16, 'depth': 3, 'num_heads': 2}
    return timm.create_model('xcit_nano_12_p8_224', num_classes=7, **sizes, **args)


def eva(**args):
    sizes = {'img_size': 56, 'embed_dim': 24, 'depth': 3, 'num_heads': 2}
    return timm.create_model('eva02_tiny_patch14_224', num_classes=7, **sizes, **args)


def mobilenet(name='mobilenetv2_035', **args):
    return timm.create_model(name, num_classes=7, **args)


def mobilenet_v1(**args):
    return timm.create_model('mobilenetv1_100', num_classes=7, **args)


def test_model(name, **args):
    return timm.create_model(name, num_classes=7, **args)


test_model.__test__ = False


class ConvBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv, self.act = nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.conv(self.act(x))


class Written(nn.Module):
    """Blocks that write into what flows in, and residual paths in code of the network itself."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 4, 4)
        self.blocks = nn.ModuleList(ConvBlock(6) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(3))
        self.scale = nn.Parameter(torch.ones(6, 1, 1))
        self.last = nn.Linear(6, 7)

    def forward(self, x):
        x = self.first(x)
        for block, norm in zip(self.blocks, self.norms, strict=True):
            x = block(x)
            x = x + self.scale * F.dropout(norm(x), 0.2, self.training)
        return self.last(x.mean((2, 3)))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.places = nn.Parameter(torch.zeros(1, 256, 16))
        self.last = nn.Linear(16, 7)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.last(self.encoder(x + self.places[:, : x.shape[1]]).mean(1))


def chain():
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True)]
    for width in (4, 8, 8):
        layers += [nn.Conv2d(layers[-2].out_channels, width, 3, padding=1), nn.ReLU(inplace=True)]
        if width == 4:
            layers += [nn.MaxPool2d(2), nn.Conv2d(4, 8, 1), nn.ReLU()]
    return nn.Sequential(nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7))


# name: side of an image, maker, blocks of each stage
NETWORKS = {
    **{
        name: (size, partial(test_model, name), blocks)
        for name, size, blocks in (
            ('test_byobnet', 64, [1, 1, 1, 1]),
            ('test_efficientnet', 64, [1, 1]),
            ('test_efficientnet_evos', 64, [1, 1]),
            ('test_mambaout', 64, [1, 1, 3, 1]),
            ('test_nfnet', 64, [1, 1, 1, 1]),
            ('test_maxvit', 160, [1, 1, 1, 1]),
        )
    },
    'pvt': (64, pvt, [1, 2, 2, 1]),
    'xcit': (64, xcit, [3, 2]),
    'eva': (56, eva, [3]),
    'mobilenet v2': (64, mobilenet, [2, 3, 7, 4]),
    'mobilenet v1': (64, mobilenet_v1, [1, 2, 2, 6, 2]),
    'written': (32, Written, [3]),
    'encoder': (64, Encoder, [3]),
    'chain': (16, chain, [1, 3]),
}
SOME = ('pvt', 'xcit', 'eva', 'written', 'encoder', 'chain', 'test_byobnet')
every_network = pytest.mark.parametrize('name', swept(NETWORKS, SOME))
some_networks = pytest.mark.parametrize('name', SOME)


@cache
def wrapped(name):
    size, make, _ = NETWORKS[name]
    torch.manual_seed(0)
    drops = {} if name in ('written', 'encoder', 'chain') else {'drop_rate': 0.2}
    model = shake(make(**drops))
    anchor = as_anchor(model, name, input_size=(3, size, size))
    assert anchor.model is model
    assert anchor.survey.head, 'measured here, so that copies need not be'
    return anchor


def traced(name):
    anchor = copy.deepcopy(wrapped(name))
    return anchor, anchor.model, images(NETWORKS[name][0])


@pytest.mark.slow_for('pvt', 'xcit')
@every_network
def test_a_traced_network_computes_what_the_network_computes(name):
    anchor, model, x = traced(name)
    assert type(anchor) is TracedAnchor
    assert list(anchor.state_dict()) == [f'model.{key}' for key in model.state_dict()]
    model.eval()
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(anchor(x), expected)
        y, at = x, None
        for position in range(len(anchor.boundaries)):
            y, at = anchor.run(y, at, position), position
            assert tuple(y.shape[1:]) == anchor.boundaries[position].shape
        assert torch.equal(anchor.run(y, at), expected)


@pytest.mark.slow_for('pvt', 'xcit')
@every_network
def test_it_trains_as_the_network_does_with_the_same_random_draws(name):
    anchor, model, x = traced(name)
    twin = copy.deepcopy(model).train()
    anchor.train()
    outputs = []
    for network in (anchor, twin):
        torch.manual_seed(1)
        outputs.append(network(x))
        outputs[-1].square().sum().backward()
    assert torch.equal(*outputs)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))
    for (key, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), key
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad), key


@every_network
def test_blocks_and_stages_are_found(name):
    anchor, _, _ = traced(name)
    assert [len(span) for span in anchor.blocks()] == NETWORKS[name][2]


@every_network
def test_no_costly_operation_goes_uncounted(name):
    anchor, _, _ = traced(name)
    assert uncounted(trace(anchor, anchor.input_size)) == {}


@some_networks
def test_cuts_hold_only_what_they_need(name):
    anchor, model, x = traced(name)
    model.eval()
    last = len(anchor.line())
    with torch.no_grad():
        for start, stop in ((None, 0), (None, last // 2), (last // 2, None), (1, last - 1), (last, None)):
            features = x if start is None else anchor.run(x, stop=start)
            part = anchor.cut(start, stop)
            assert torch.equal(part.run(features.clone(), start, stop), anchor.run(features.clone(), start, stop))
            assert {key for key, _ in part.model.named_parameters()} == anchor.parameter_names(start, stop)


@some_networks
def test_copies_and_pickles_stand_alone(name):
    anchor, model, x = traced(name)
    model.eval()
    with torch.no_grad():
        expected = anchor(x)
        copies = [copy.deepcopy(anchor), pickle.loads(pickle.dumps(anchor))]
        for parameter in model.parameters():
            parameter.zero_()
        for twin in copies:
            assert torch.equal(twin(x), expected)


@pytest.mark.quick('pvt-stages.2.blocks.0')
@pytest.mark.parametrize(('name', 'path'), [('pvt', 'stages.2.blocks.0'), ('mobilenet v2', 'blocks.2.1')])
def test_a_replaced_block_is_used(name, path):
    class Tripled(nn.Module):
        def forward(self, x, *_):
            return 3 * x

    anchor, model, x = traced(name)
    model.eval()
    with torch.no_grad():
        before = anchor(x)
        owner, _, leaf = path.rpartition('.')
        setattr(model.get_submodule(owner), leaf, Tripled())
        after = model(x)
        assert not torch.equal(after, before)
        assert torch.equal(anchor(x), after)


def test_recomputed_blocks_have_the_same_gradients():
    anchor, model, x = traced('pvt')
    grads = []
    for anchor.checkpointing in (False, True):
        model.zero_grad()
        torch.manual_seed(1)
        anchor.train()(x).sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(map(torch.equal, *grads))


@pytest.mark.quick('encoder', 'chain')
@pytest.mark.parametrize('name', ['mobilenet v2', 'test_nfnet', 'encoder', 'chain'])
def test_a_network_of_any_size_stays_one(name):
    anchor, model, _ = traced(name)
    model.eval()
    x = torch.randn(3, 3, 48, 32)
    with torch.no_grad():
        assert torch.equal(anchor(x), model(x))
        assert torch.equal(anchor.run(anchor.run(x, stop=2), 2), model(x))


@pytest.mark.parametrize('name', ['pvt', 'xcit', 'eva'])
def test_a_network_whose_blocks_are_told_the_size_refuses_another(name):
    anchor, _, x = traced(name)
    size = x.shape[-1]
    with pytest.raises(CannotStitch, match=f'{name}.* one (image )?size only.*{size}'):
        anchor.eval()(torch.randn(1, 3, 2 * size, 2 * size))
    at = anchor.boundaries[1]
    with pytest.raises(CannotStitch, match='one (image )?size only'):
        anchor.run(torch.randn(1, 3 * at.tokens, at.channels), start=1)


@pytest.mark.quick('adapter-levit', 'adapter-swin')
@pytest.mark.parametrize(
    ('make', 'position'), [(partial(swin, 8), 1), (partial(levit, Levit, 16), 0)], ids=['swin', 'levit']
)
@pytest.mark.parametrize('wrap', [as_anchor, partial(TracedAnchor, name='traced')], ids=['adapter', 'traced'])
def test_blocks_that_are_tied_to_a_grid_refuse_another(make, position, wrap):
    anchor = wrap(make(), input_size=(3, 64, 64)).eval()
    at = anchor.boundaries[position]
    rows, columns = at.grid
    shape = (2 * rows, 2 * columns, at.channels) if at.layout == 'NHWC' else (4 * rows * columns, at.channels)
    with torch.no_grad():
        assert anchor.run(torch.randn(2, *at.shape), position, position + 1).isfinite().all()
        with pytest.raises(CannotStitch, match='one (image )?size only'):
            anchor.run(torch.randn(2, *shape), position, position + 1)


@pytest.mark.slow  # seconds
def test_a_traced_swin_is_the_adapters_swin():
    model = swin(8)
    ours, theirs = TracedAnchor(model, 'swin', (3, 64, 64)), as_anchor(model, 'swin', input_size=(3, 64, 64))
    assert ours.line() == theirs.line()
    assert ours.boundaries == theirs.boundaries
    assert [(s.entry, list(s.blocks)) for s in ours.stages()] == [(s.entry, list(s.blocks)) for s in theirs.stages()]


@pytest.mark.slow  # a second each
@pytest.mark.parametrize(
    ('name', 'blocks'),
    [
        ('deit_small_patch16_224', 12),
        ('mobilenetv2_100', 16),
        ('mixer_b16_224', 12),
        ('pvt_v2_b2', 16),
        ('vgg11', 7),
    ],
)
def test_known_networks_have_their_number_of_blocks(name, blocks):
    with torch.device('meta'):
        model = timm.create_model(name)
    anchor = TracedAnchor(model, name, (3, 224, 224))
    assert sum(map(len, anchor.blocks())) == blocks


@pytest.mark.quick('resnet18-found', 'resnet50-found', 'vit_small_patch16_224-found')
@pytest.mark.parametrize('wrap', swept(['found', 'traced'], ['found']))
@pytest.mark.parametrize('name', LINES)
def test_published_lines_have_their_shapes_and_parameters(name, wrap):
    expected = LINES[name]
    with torch.device('meta'):
        model = timm.create_model(expected['timm'])
    size = (3, 224, 224)
    anchor = TracedAnchor(model, name, size) if wrap == 'traced' else as_anchor(model, name, input_size=size)
    parameters = dict(model.named_parameters())
    names = {id(module): path for path, module in model.named_modules()}
    found = [
        {
            'path': names[id(module)],
            'in_shape': list(anchor.boundaries[i].shape),
            'out_shape': list(anchor.boundaries[i + 1].shape),
            'params': sum(parameters[key].numel() for key in anchor.survey.modules[i]),
        }
        for i, module in enumerate(anchor.line())
    ]
    assert found == expected['nodes']


def brute_force(before):
    """Nodes without which the last cannot be reached from the first."""

    def reaches(without):
        met = {0} - {without}
        for node, earlier in enumerate(before):
            if node != without and met & set(earlier):
                met.add(node)
        return len(before) - 1 in met

    return {node for node in range(len(before)) if not reaches(node)}


@pytest.mark.parametrize('seed', range(50))
def test_cut_points_are_the_nodes_that_nothing_gets_around(seed):
    draw = random.Random(seed)
    count = draw.randint(2, 14)
    edges = [set()] + [
        {max(0, i - 1 - min(draw.randrange(4), draw.randrange(4))) for _ in range(draw.randint(1, 2))}
        for i in range(1, count)
    ]
    alive, todo = set(), [count - 1]  # what leads nowhere is not on a path
    while todo:
        node = todo.pop()
        alive.add(node)
        todo += edges[node]
    order = sorted(alive)
    before = [sorted(order.index(e) for e in edges[node]) for node in order]
    assert cut_points(before, range(len(order))) == brute_force(before)


class Watching(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 4, 4)
        self.gate = Gate()

    def forward(self, x):
        return self.gate(self.first(x)).mean((2, 3))


class Gate(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Beside(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = (nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))) for _ in range(2))

    def forward(self, x):
        return (self.left(x) + self.right(x)).mean((2, 3))


@pytest.mark.parametrize(
    ('model', 'words'),
    [
        (Watching(), 'the values that flow decide what gate computes'),
        (Beside(), r'from left\.0 to right\.2'),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 7)), 'fewer than two blocks'),
        (nn.LSTM(3, 4), 'fails with'),
    ],
    ids=['watching', 'beside', 'flat', 'recurrent'],
)
def test_what_is_no_line_is_refused_with_the_reason(model, words):
    with pytest.raises(CannotStitch, match=f'odd cannot be split into a sequence of blocks: .*{words}'):
        as_anchor(model, 'odd', input_size=(3, 8, 8))


@pytest.mark.slow  # a few seconds
def test_networks_without_adapter_are_known_by_name():
    anchor = load_anchor('mobilenetv3_small_050', pretrained=False, num_classes=7, img_size=64)
    assert type(anchor) is TracedAnchor
    assert anchor.boundaries[0] == Boundary(16, (16, 16), 'NCHW')
    with pytest.raises(SnnetError, match='crossvit_9_240 cannot be split .*: parallel branches run all the way'):
        load_anchor('crossvit_9_240', pretrained=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('small', 'large'),
    [(mobilenet, partial(mobilenet, 'mobilenetv2_050')), (pvt, partial(pvt, 12))],
    ids=['mobilenet', 'pvt'],
)
def test_traced_networks_are_stitched(small, large, tmp_path):
    net = build(('small', small), ('large', large), size=64)
    x = images(64)
    snnet.measure_costs(net)
    costs = [(r.flops, r.params) for r in net.records]
    snnet.initialize(net, [images(64, 8)], samples=8)
    assert len(net.stitches) >= 4
    assert costs[0] < costs[2] < costs[1]
    with torch.no_grad():
        for stitch in (0, 1, 2, len(net.stitches) - 1):
            cut = net.extract(stitch)
            assert torch.equal(cut(x), net(x, stitch=stitch))
            assert sum(p.numel() for p in cut.parameters()) == costs[stitch][1]
        expected = [net(x, stitch=stitch) for stitch in range(len(net.stitches))]
        snnet.compile_blocks(net, backend='eager')
        assert all(torch.allclose(net(x, stitch=i), y, atol=1e-5) for i, y in enumerate(expected))


@pytest.mark.slow
def test_a_net_of_traced_networks_is_saved_and_loaded(tmp_path):
    names = 'mobilenetv3_small_050,mobilenetv3_small_075'
    net = snnet.create_stitchable_net(names, pretrained=False, num_classes=7, img_size=64).eval()
    net.save_pretrained(tmp_path)
    again = snnet.StitchableNet.from_pretrained(tmp_path).eval()
    x = images(64)
    with torch.no_grad():
        for stitch in (0, 1, len(net.stitches) - 1):
            assert torch.equal(again(x, stitch=stitch), net(x, stitch=stitch))


def test_blocks_that_share_what_is_drawn_at_random_are_no_line():
    model = timm.create_model('vit_srelpos_small_patch16_224', depth=2, embed_dim=32, num_heads=2, num_classes=3)
    with pytest.raises(CannotStitch, match=r'shared_rel_pos.mlp.drop1 draws random numbers for several blocks at once'):
        snnet.as_anchor(model)
