from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

import snnet
from snnet.errors import SnnetError
from snnet.reassembly.cka import HsicSums, gram, linear_cka
from snnet.reassembly.similarity import Similarity
from snnet.reassembly.zoo_similarity import measure_similarity
from tests.helpers.families import FAMILIES, images, shake, vit

SIZE = 64


def orthonormal(rows=100, columns=18, seed=0):
    """Centerd orthonormal columns."""
    values = np.random.default_rng(seed).normal(size=(rows, columns))
    return np.linalg.qr(values - values.mean(0))[0]


def noise(rows, columns, *seed):
    return np.random.default_rng(seed).normal(size=(rows, columns))


def song(k, left):
    """HSIC_1 by its definition: the mean of U-statistics over all ordered quadruples of different images."""
    n = len(k)
    total = 0.0
    for i, j, q, r in itertools.permutations(range(n), 4):
        total += k[i, j] * (left[i, j] + left[q, r] - 2 * left[i, q])
    return total / math.perm(n, 4)


def zoo(*kinds, size=SIZE):
    makers = {
        'cnn': FAMILIES['resnet'].small,
        'swin': FAMILIES['swin'].small,
        'vit': lambda: vit(16, img_size=size, patch_size=16),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [snnet.as_anchor(shake(makers[kind]()), kind, input_size=(3, size, size)) for kind in kinds]


@pytest.mark.parametrize('scale', [1, 1e-3, 1e4])
def test_cka_of_stretched_columns_is_the_closed_form(scale):
    x, d = orthonormal()[:, :8], np.linspace(1, 4, 8)
    expected = (d**2).sum() / (math.sqrt(8) * math.sqrt((d**4).sum()))
    assert expected == pytest.approx(0.8228844677534628, rel=1e-15)
    assert linear_cka(x * scale, x * d, 'biased') == pytest.approx(expected, rel=1e-12)


def test_cka_of_overlapping_spans_is_the_closed_form():
    u = orthonormal()
    assert linear_cka(u[:, :10], u[:, 6:18], 'biased') == pytest.approx(4 / math.sqrt(120), rel=1e-12)


@pytest.mark.parametrize('estimator', ['unbiased', 'biased', 'published'])
def test_cka_does_not_see_rotation_scale_and_shift(estimator):
    x, y = noise(40, 6, 1) + 2, noise(40, 9, 2) + noise(40, 1, 3)
    rotation = np.linalg.qr(noise(6, 6, 4))[0]
    expected = linear_cka(x, y, estimator)
    assert linear_cka(-3 * x @ rotation + 50, y, estimator) == pytest.approx(expected, abs=1e-12)
    assert linear_cka(y, x, estimator) == pytest.approx(expected, abs=1e-14)
    assert linear_cka(x, 7 * x + 1, estimator) == pytest.approx(1, abs=1e-12)


def test_unbiased_terms_are_song_s_statistic_over_quadruples():
    x, y = noise(7, 3, 5), noise(7, 2, 6) + 1
    sums = HsicSums(('x', 'y'))
    sums.add(torch.stack([gram(torch.from_numpy(values)) for values in (x, y)]))
    k, left = x @ x.T, y @ y.T
    expected = np.array([[song(k, k), song(k, left)], [song(left, k), song(left, left)]])
    np.testing.assert_allclose(sums.total.numpy(), expected, rtol=1e-10)


def test_unbiased_cka_of_independent_features_is_zero_on_average_and_published_is_not():
    n, d, repeats = 64, 48, 200
    values = np.array([linear_cka(noise(n, d, 0, i), noise(n, d, 1, i)) for i in range(repeats)])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(repeats)
    assert np.mean([linear_cka(noise(n, d, 0, i), noise(n, d, 1, i), 'published') for i in range(20)]) == pytest.approx(
        0.43, abs=0.01
    )


def test_terms_are_summed_over_batches_and_divided_once():
    x, y = noise(40, 5, 7), noise(40, 5, 7) + noise(40, 5, 8)
    sums, terms = HsicSums(('x', 'y')), np.zeros((2, 2))
    for part in (slice(0, 8), slice(8, 20), slice(20, 40)):
        grams = torch.stack([gram(torch.from_numpy(values[part])) for values in (x, y)])
        sums.add(grams)
        one = HsicSums(('x', 'y'))
        one.add(grams)
        terms += one.total.numpy()
    assert float(sums.cka()[0, 1]) == pytest.approx(terms[0, 1] / math.sqrt(terms[0, 0] * terms[1, 1]), rel=1e-12)


def test_large_means_and_wide_features_cost_no_precision_in_float32():
    x, y = noise(32, 20_000, 9), noise(32, 300, 10)
    x[:, 0] += y[:, 0] * 100
    exact = linear_cka(x, y)
    assert abs(exact) > 0.03
    assert linear_cka((x + 1000).astype(np.float32), y.astype(np.float32)) == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize('estimator', ['unbiased', 'biased', 'published'])
def test_constant_features_are_similar_to_nothing(estimator):
    constant = torch.full((16, 50), 0.3)
    assert linear_cka(constant, torch.from_numpy(noise(16, 4, 11)), estimator) == 0


@pytest.mark.parametrize('estimator', ['unbiased', 'biased'])
@pytest.mark.parametrize('pool', [False, True])
def test_every_entry_is_the_cka_of_the_features_at_two_boundaries(estimator, pool):
    anchors = zoo('cnn', 'vit')
    batch = images(SIZE, 12)
    found = measure_similarity(anchors, [batch], pool=pool, estimator=estimator)
    with torch.no_grad():
        cnn, vit_ = anchors[0].eval().run(batch, None, 3), anchors[1].eval().run(batch, None, 2)
    if pool:
        cnn, vit_ = cnn.mean((2, 3)), vit_[:, 1:].mean(1)
    expected = linear_cka(cnn.double(), vit_.double(), estimator)
    assert found.between('cnn', 'vit')[3, 2] == pytest.approx(expected, abs=1e-5)
    assert found.matrix.shape == (sum(len(a.boundaries) for a in anchors),) * 2
    np.testing.assert_array_equal(found.matrix.diagonal(), 1)
    np.testing.assert_allclose(found.matrix, found.matrix.T, atol=1e-15)


@pytest.mark.parametrize('estimator', ['unbiased', 'biased'])
def test_full_cka_compares_the_images_of_all_batches(estimator):
    anchors, batch = zoo('cnn', 'swin'), images(SIZE, 70)
    whole = measure_similarity(anchors, [batch], estimator=estimator, pool=True)
    parts = measure_similarity(anchors, batch.split(9), estimator=estimator, pool=True, full=True)
    np.testing.assert_allclose(parts.matrix, whole.matrix, atol=1e-5)


def test_ranks_with_their_own_images_agree_with_one_process_that_has_all():
    anchors, batch = zoo('cnn', 'vit'), images(SIZE, 16)
    together = measure_similarity(anchors, batch.split(8))
    others = []
    measure_similarity(anchors, [batch[8:]], all_reduce=lambda tensor: others.append(tensor.clone()))
    found = measure_similarity(anchors, [batch[:8]], all_reduce=lambda tensor: tensor.add_(others.pop(0)))
    np.testing.assert_allclose(found.matrix, together.matrix, atol=1e-12)


def test_measuring_leaves_the_networks_as_they_are():
    anchors = zoo('cnn', 'vit')
    before = {name: value.clone() for name, value in anchors[0].state_dict().items()}
    anchors[0].train()
    told = []
    measure_similarity(anchors, [(images(SIZE, 4), None), (images(SIZE, 5), None)], progress=told.append)
    assert anchors[0].training
    assert told == [4, 5]
    assert all(torch.equal(value, before[name]) for name, value in anchors[0].state_dict().items())


def test_a_last_batch_that_is_too_small_joins_the_one_before():
    anchors, batch = zoo('cnn', 'vit'), images(SIZE, 15)
    found = measure_similarity(anchors, [batch[:6], batch[6:12], batch[12:]])
    expected = measure_similarity(anchors, [batch[:6], batch[6:]])
    np.testing.assert_array_equal(found.matrix, expected.matrix)


def broken(anchors):
    anchors[1].model.blocks[2].mlp.fc2.weight.data[0, 0] = math.nan


@pytest.mark.parametrize(
    ('kinds', 'batches', 'change', 'options', 'sentence'),
    [
        (('cnn',), [8], None, {}, 'at least two networks'),
        (('cnn', 'cnn'), [8], None, {}, "called 'cnn'"),
        (('cnn', 'vit'), [3], None, {}, 'at least 4 images.* 3 given'),
        (('cnn', 'vit'), [3, 8], None, {}, 'batch 0 has 3 images'),
        (('cnn', 'vit'), [], None, {}, 'no images'),
        (('cnn', 'vit'), [], None, {'full': True}, 'no images'),
        (('cnn', 'vit'), [3], None, {'full': True}, 'at least 4 images, not 3'),
        (('cnn', 'vit'), [8], None, {'estimator': 'best'}, "unbiased, biased, published, not 'best'"),
        (('cnn', 'vit'), [8], broken, {}, 'vit at position 3 are not finite'),
        (('cnn', 'vit'), [8], broken, {'estimator': 'published'}, 'vit at position 3 are not finite'),
        (('cnn', 'vit'), [8], broken, {'full': True}, 'vit at position 3 are not finite'),
    ],
)
def test_bad_input_gets_a_sentence(kinds, batches, change, options, sentence):
    anchors = zoo(*kinds)
    if change:
        change(anchors)
    with pytest.raises(SnnetError, match=sentence):
        measure_similarity(anchors, [images(SIZE, count) for count in batches], **options)


def test_networks_and_images_of_different_sizes_get_a_sentence():
    with pytest.raises(SnnetError, match='3x64x64: cnn; 3x32x32: vit'):
        measure_similarity([*zoo('cnn'), *zoo('vit', size=32)], [images(64, 8)])
    with pytest.raises(SnnetError, match='take images of 3x64x64, but a batch holds images of 3x32x32'):
        measure_similarity(zoo('cnn', 'vit'), [images(32, 8)])


def test_a_dead_boundary_is_zero_and_named(caplog):
    anchors = zoo('cnn', 'vit')
    nn.init.zeros_(anchors[0].model.bn1.weight)
    nn.init.zeros_(anchors[0].model.bn1.bias)
    found = measure_similarity(anchors, [images(SIZE, 8)])
    assert not found.matrix[0].any()
    assert 'cnn at position 0' in caplog.text


def example():
    boundaries = (('a', 0), ('a', 1), ('a', 2), ('b', 0), ('b', 1))
    return Similarity(boundaries, np.arange(25.0).reshape(5, 5) / 25)


def test_functional_similarity_adds_inputs_and_outputs():
    found = example()
    assert found.functional(snnet.Leg('a', 1, 2), snnet.Leg('b', 0, 1)) == found.matrix[1, 3] + found.matrix[2, 4]
    assert found.functional(snnet.Leg('a'), snnet.Leg('b', 0)) == found.matrix[0, 3] + found.matrix[2, 4]
    with pytest.raises(SnnetError, match="'c' is not in the zoo of a, b"):
        found.functional(snnet.Leg('a'), snnet.Leg('c'))


def test_saved_similarities_are_loaded_unchanged_and_other_files_refused(tmp_path):
    path = tmp_path / 'zoo.safetensors'
    example().save(path)
    loaded = Similarity.load(path)
    assert loaded.boundaries == example().boundaries
    np.testing.assert_array_equal(loaded.matrix, example().matrix)
    for name, content in (('cut', path.read_bytes()[:-5]), ('text', b'hello'), ('empty', b'')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SnnetError, match=f"{name}' is not a valid file of similarities"):
            Similarity.load(tmp_path / name)
    with pytest.raises(SnnetError, match='missing'):
        Similarity.load(tmp_path / 'missing')


@pytest.mark.parametrize(
    'boundaries', [(('a', 0), ('a', 2)), (('a', 1), ('b', 0)), (('a', 0), ('b', 0), ('a', 1)), (('a', 0), ('a', 0))]
)
def test_boundaries_out_of_order_are_refused(boundaries):
    with pytest.raises(SnnetError, match='out of order'):
        Similarity(boundaries, np.eye(len(boundaries)))
