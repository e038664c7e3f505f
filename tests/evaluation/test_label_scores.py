"""Images with several labels: average precision, and what an evaluation keeps to compute it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from snnet import SnnetError, StitchableNet, create_stitchable_net
from snnet.data.datasets import open_dataset
from snnet.data.unaugmented_images import clean_loader
from snnet.evaluation import label_scores
from snnet.evaluation.average_precision import average_precision, mean_average_precision
from snnet.evaluation.evaluate import Evaluation, evaluate
from snnet.evaluation.label_scores import LabelScores
from snnet.utils.distributed import Ranks
from tests.helpers.runs import eval_settings, write_images


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A saved net for several labels, and eight images of three labels, the last of which none has."""
    folder = tmp_path_factory.mktemp('labels')
    torch.manual_seed(0)
    net = create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=3, img_size=32)
    net.several_labels = True
    net.save_pretrained(folder / 'net')
    write_images(folder / 'validation', 1, 8)
    rows = [f'validation/class0/{i}.png,{i % 2},{int(i % 3 == 0)},0' for i in range(8)]
    (folder / 'labels.csv').write_text('\n'.join(['file,red,big,old', *rows]))
    return folder / 'net', {'dataset': '', 'data_dir': str(folder), 'labels': str(folder / 'labels.csv')}


@pytest.mark.parametrize('levels', [1, 3, 1000])  # few levels: many images have the same score
def test_average_precision_is_that_of_scikit_learn(levels):
    draw = np.random.default_rng(levels)
    scores, labels = draw.integers(0, levels, (60, 4)) / 7, draw.random((60, 4)) < 0.3
    wanted = [average_precision_score(labels[:, i], scores[:, i]) for i in range(4)]
    assert [average_precision(scores[:, i], labels[:, i]) for i in range(4)] == pytest.approx(wanted, rel=1e-12)
    labels[:, 1] = False
    assert mean_average_precision(scores, labels) == pytest.approx(100 * np.mean([*wanted[:1], *wanted[2:]]))


def test_classes_without_images_and_scores_that_are_not_numbers():
    assert mean_average_precision(np.zeros((3, 2)), np.zeros((3, 2), bool)) is None
    assert average_precision(np.array([np.nan, 1, 2]), np.array([True, False, False])) == pytest.approx(1 / 3)
    assert average_precision(np.array([np.inf, 1, -np.inf]), np.array([True, False, True])) == pytest.approx(
        (1 + 2 / 3) / 2
    )


def check_precision(net, settings, stitch):
    """The precision of a stitch is scikit-learn's of its logits in batches of four."""
    dataset = open_dataset(settings.data, 'validation', net)
    images, labels = next(iter(clean_loader(settings.data, dataset, net, range(8), 8)))
    with torch.no_grad():
        logits = torch.cat([net(part, stitch=stitch) for part in images.split(4)])
    values = [average_precision_score(labels[:, i], logits[:, i]) for i in range(2)]
    assert net.records[stitch].mean_average_precision == pytest.approx(100 * np.mean(values), rel=1e-9)


@pytest.mark.slow  # two evaluations
def test_an_evaluation_that_is_interrupted_goes_on_and_finds_the_same(saved, tmp_path, monkeypatch):
    folder, data = saved
    settings = eval_settings(folder, **data, output=str(tmp_path), stitches='0,3')
    add = LabelScores.add

    def dies(self, window, done):
        if done:
            raise KeyboardInterrupt
        add(self, window, done)

    monkeypatch.setattr(LabelScores, 'add', dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate(settings)
    assert (tmp_path / 'progress.logits').stat().st_size == 4 * 4 * 2 * 3  # bytes, images, stitches, classes
    monkeypatch.setattr(
        LabelScores,
        'add',
        lambda self, window, done: add(self, window, done) if done else pytest.fail('the first images again'),
    )
    net, _ = evaluate(settings)
    assert {path.name for path in tmp_path.iterdir()} == {'stitches.jsonl', 'hits.safetensors'}
    check_precision(net, settings, 3)


@pytest.mark.slow  # three evaluations
def test_logits_that_are_missing_are_computed_again(saved, tmp_path, capsys, monkeypatch):
    folder, data = saved
    settings = eval_settings(folder, **data, output=str(tmp_path), stitches='0')
    wanted, _ = evaluate(settings)
    (tmp_path / 'stitches.jsonl').unlink()
    row = Evaluation._row
    monkeypatch.setattr(Evaluation, '_row', lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        evaluate(settings)
    (tmp_path / 'progress.logits').write_bytes(b'')
    monkeypatch.setattr(Evaluation, '_row', row)
    net, _ = evaluate(settings)
    assert 'progress.logits is damaged, so its images are evaluated again' in capsys.readouterr().err
    assert net.records[0] == wanted.records[0]


def test_precisions_are_kept_and_other_labels_of_the_same_images_are_other_results(saved, tmp_path):
    folder, data = saved
    settings = eval_settings(folder, **data, output=str(tmp_path / 'out'), stitches='3')
    net, _ = evaluate(settings)
    check_precision(net, settings, 3)
    held = StitchableNet.from_pretrained(folder).records[3].mean_average_precision
    assert held == pytest.approx(net.records[3].mean_average_precision)
    table = tmp_path / 'labels.csv'
    rows = [f'validation/class0/{i}.png,1,{int(i > 4)},0' for i in range(8)]
    table.write_text('\n'.join(['file,red,big,old', *rows]))
    other = eval_settings(folder, **{**data, 'labels': str(table)}, output=str(tmp_path / 'out'), stitches='0')
    with pytest.raises(SnnetError, match='results of other weights, statistics, images, labels or precision'):
        evaluate(other)


@pytest.mark.parametrize(
    ('several', 'labelled', 'said'),
    [
        (True, True, None),
        (True, False, 'says yes or no to each class, but these images have one class each'),
        (False, True, 'each logit is taken for a yes or no to its class'),
    ],
)
def test_images_that_are_labelled_otherwise_than_those_of_training_are_said(
    saved, tmp_path, monkeypatch, several, labelled, said
):
    folder, data = saved
    net, warnings = StitchableNet.from_pretrained(folder), []
    net.several_labels = several
    if not labelled:
        write_images(tmp_path / 'validation', 3, 1)
        data = {'dataset': '', 'data_dir': str(tmp_path)}
    monkeypatch.setattr(label_scores._log, 'warning', warnings.append)
    Evaluation(eval_settings(folder, **data), net, tmp_path, Ranks(0, 1, torch.device('cpu')))
    assert len(warnings) == (said is not None)
    assert said is None or said in warnings[0]
