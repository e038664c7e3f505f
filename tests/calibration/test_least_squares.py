from __future__ import annotations

import copy

import pytest
import torch

import snnet
from snnet.calibration.initialize import Sums
from tests.helpers.families import every_net, family_net, images, shared_net

ROWS = 600


def features(channels, seed, rows=ROWS, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, dtype=torch.float64, generator=generator) / channels**0.5
    noise = torch.randn(rows, channels, dtype=torch.float64, generator=generator)
    return noise @ (mixing + torch.eye(channels, dtype=torch.float64)) + offset


def fitted(front, end, parts=1):
    sums = Sums(front.shape[1], end.shape[1], front.device)
    for a, b in zip(front.chunk(parts), end.chunk(parts), strict=True):
        sums.add(a, a.T @ a, [b])
    return sums.solve(3)


def reference(front, end):
    """Weight and bias by float64 `pinv` with a column of ones."""
    ones = torch.cat([front, torch.ones(len(front), 1, dtype=front.dtype)], 1)
    solution = torch.linalg.pinv(ones) @ end
    return solution[:-1].T, solution[-1]


def error(front, end, weight, bias):
    return float((front @ weight.T + bias - end).square().sum())


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('offset', [0.0, 30.0])
def test_predictions_are_those_of_a_pseudo_inverse(seed, offset):
    front, end = features(24, seed, offset=offset), features(40, seed + 100)
    front[:, 3] *= 1000  # a massive channel, as transformers have them
    weight, bias, fit = fitted(front, end)
    other = reference(front, end)
    assert (front @ weight.T + bias - front @ other[0].T - other[1]).abs().max() < 1e-8
    assert (fit.layer, fit.rank, fit.channels, fit.rows) == (3, 24, 24, ROWS)
    total = float((end - end.mean(0)).square().sum())
    assert fit.residual == pytest.approx(error(front, end, *other) / total, rel=1e-9)
    spread = torch.linalg.cond(torch.corrcoef(front.T), 2)
    assert spread / 24 < fit.condition < spread * 24


def spoil(front, how):
    front = front.clone()
    if 'duplicate' in how:
        front[:, :5] = front[:, 5:10]
    if 'scaled' in how:
        front[:, 11] = -7 * front[:, 12]
    if 'dead' in how:
        front[:, 14] = 0
    if 'constant' in how:
        front[:, 15] = 12.3
    if 'sum' in how:
        front[:, 16] = front[:, 17] + front[:, 18]
    return front


HOW = {'duplicate': 5, 'scaled': 1, 'dead': 1, 'constant': 1, 'sum': 1, 'duplicate scaled dead constant sum': 9}


@pytest.mark.parametrize('how', HOW)
def test_rank_deficient_features_fit_no_worse_than_a_pseudo_inverse(how):
    front = spoil(features(24, 0), how)
    end = features(40, 1) + front[:, 5:6]
    weight, bias, fit = fitted(front, end)
    assert weight.isfinite().all()
    assert bias.isfinite().all()
    assert error(front, end, weight, bias) <= error(front, end, *reference(front, end)) * (1 + 1e-6)
    assert fit.rank == 24 - HOW[how]
    assert fit.condition > 1e10


def test_fewer_rows_than_channels_are_fitted_exactly():
    front, end = features(24, 0, rows=10), features(40, 1, rows=10)
    weight, bias, fit = fitted(front, end)
    assert (front @ weight.T + bias - end).abs().max() < 1e-6
    assert fit.rank == 9


def test_features_without_any_variance_are_fitted_by_the_mean():
    end = features(5, 1)
    weight, bias, fit = fitted(torch.full((ROWS, 3), 2.0, dtype=torch.float64), end)
    torch.testing.assert_close(bias + weight @ torch.full((3,), 2.0, dtype=torch.float64), end.mean(0))
    assert (fit.rank, fit.residual) == (0, pytest.approx(1))


def with_ridge(front, end, ridge):
    sums = Sums(front.shape[1], end.shape[1], front.device)
    sums.add(front, front.T @ front, [end])
    return sums.solve(0, ridge)


def test_a_ridge_solves_the_problem_with_rows_that_ask_for_small_scaled_weights():
    front, end = features(24, 0, offset=5), features(40, 1)
    centered = front - front.mean(0)
    scale = centered.square().sum(0).sqrt()
    more = torch.cat([centered / scale, 0.3**0.5 * torch.eye(24, dtype=front.dtype)])
    wanted = torch.linalg.lstsq(more, torch.cat([end - end.mean(0), torch.zeros(24, 40, dtype=end.dtype)])).solution
    weight, bias, fit = with_ridge(front, end, 0.3)
    torch.testing.assert_close(weight.T * scale[:, None], wanted)
    torch.testing.assert_close(front.mean(0) @ weight.T + bias, end.mean(0))
    total = float((end - end.mean(0)).square().sum())
    assert fit.residual == pytest.approx(error(front, end, weight, bias) / total)


@pytest.mark.parametrize('how', ['', *HOW])
def test_no_ridge_changes_nothing_and_a_large_one_leaves_the_mean(how):
    front, end = spoil(features(24, 0), how), features(40, 1)
    plain, none, large = fitted(front, end), with_ridge(front, end, 0.0), with_ridge(front, end, 1e9)
    assert torch.equal(plain[0], none[0])
    assert torch.equal(plain[1], none[1])
    torch.testing.assert_close(large[1] + front @ large[0].T, end.mean(0).expand(ROWS, -1), rtol=0, atol=1e-6)
    assert large[2].residual == pytest.approx(1)


def test_the_larger_the_ridge_the_smaller_the_weight_and_the_better_the_condition():
    front, end = spoil(features(24, 0), 'sum'), features(40, 1)
    found = [with_ridge(front, end, ridge) for ridge in (0.0, 1e-3, 0.1, 10.0)]
    norms, conditions = [float(weight.norm()) for weight, _, _ in found], [fit.condition for _, _, fit in found]
    assert norms == sorted(norms, reverse=True)
    assert conditions == sorted(conditions, reverse=True)
    assert (found[0][2].rank, found[1][2].rank) == (23, 24)


def test_initializing_with_a_ridge_reaches_every_layer_and_a_bad_one_is_refused():
    net, x = family_net('vit'), images(32, 24)
    plain, ridged = snnet.initialize(net, [x], samples=24), snnet.initialize(net, [x], samples=24, ridge=0.5)
    assert all(a.residual < b.residual for a, b in zip(plain, ridged, strict=True))
    for ridge in (-0.1, float('nan'), float('inf')):
        with pytest.raises(snnet.SnnetError, match=f'ridge .* not {ridge}'):
            snnet.initialize(net, [x], samples=24, ridge=ridge)


def test_sums_add_up_however_the_rows_are_split():
    front, end = features(24, 0), features(40, 1)
    whole, split = fitted(front, end), fitted(front, end, parts=7)
    torch.testing.assert_close(split[0], whole[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(split[1], whole[1], rtol=0, atol=1e-10)


def rows_at(net, name, position, x):
    anchor = net.anchor(name)
    with torch.no_grad():
        features = anchor.run(x, stop=position)
    if anchor.boundaries[position].layout == 'NCHW':
        features = features.movedim(1, -1)
    return features.reshape(-1, features.shape[-1]).double()


def joins_of(net, layer):
    pairs = {}
    for stitch in net.stitches:
        for index, front, end in zip(stitch.layers, stitch.legs, stitch.legs[1:], strict=False):
            if index == layer:
                pairs[(front.anchor, front.stop), (end.anchor, end.start)] = None
    return list(pairs)


def solutions_by_hand(net, layer, x):
    pairs = [(rows_at(net, *front, x), rows_at(net, *end, x)) for front, end in joins_of(net, layer)]
    return pairs, [reference(*pair) for pair in pairs]


@pytest.mark.quick('two ways', 'vit', 'official')
@every_net
def test_a_shared_layer_is_fitted_to_all_its_joins_at_once(name):
    net = copy.deepcopy(shared_net(name))
    x = images(net.input_size[1], 24)
    before = {key: value.clone() for key, value in net.state_dict().items() if key.startswith('anchors')}
    fits = snnet.initialize(net, [x], samples=24)
    assert [fit.layer for fit in fits] == list(range(len(net.stitch_layers)))
    for fit in fits:
        pairs, _ = solutions_by_hand(net, fit.layer, x)
        front, end = torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])
        best = error(front, end, *reference(front, end))
        layer = net.layer(fit.layer)
        total = float((end - end.mean(0)).square().sum())
        excess = error(front, end, layer.weight.detach().double(), layer.bias.detach().double()) - best
        assert excess <= 1e-6 * best + 1e-9 * total
        assert fit.residual == pytest.approx(best / total, rel=1e-5, abs=1e-9)
        assert fit.rows == len(front)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())


def test_by_the_mean_a_shared_layer_is_the_mean_of_the_solutions_of_its_joins():
    net, x = family_net('vit'), images(32, 24)
    snnet.initialize(net, [x], samples=24, method='mean')
    for index in range(len(net.stitch_layers)):
        _, solutions = solutions_by_hand(net, index, x)
        assert len(solutions) > 1
        weight = torch.stack([w for w, _ in solutions]).mean(0)
        bias = torch.stack([b for _, b in solutions]).mean(0)
        torch.testing.assert_close(net.layer(index).weight.double(), weight, rtol=0, atol=1e-5)
        torch.testing.assert_close(net.layer(index).bias.double(), bias, rtol=0, atol=1e-5)
