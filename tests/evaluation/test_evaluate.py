from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from snnet import SnnetError, StitchableNet, UnknownStitch, create_stitchable_net
from snnet.budget.frontier import frontier_table
from snnet.budget.plot import draw_curve
from snnet.budget.record import Record
from snnet.calibration.recalibrate import recalibrate
from snnet.data.datasets import open_dataset
from snnet.data.transforms import clean_transform
from snnet.data.unaugmented_images import clean_loader
from snnet.evaluation.evaluate import Evaluation, evaluate, spread
from snnet.evaluation.hits import Tally, read_hits, write_hits
from snnet.evaluation.paired_difference import best_against_anchor, compare
from snnet.net.shared_prefixes import all_logits
from snnet.stitching.stitch import parse_ids
from snnet.training.trainer import train
from snnet.utils.distributed import Ranks
from tests.helpers.families import every_net, family_net, images, shared_net
from tests.helpers.runs import eval_settings, train_settings, write_images

CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    return train(train_settings(tmp_path_factory.mktemp('saved') / 'run', epochs=1))


def rows_of(output):
    return [json.loads(line) for line in (output / 'stitches.jsonl').read_text().splitlines()]


@pytest.mark.quick('vit', 'two ways')
@every_net
def test_sharing_parts_changes_no_bit_of_any_stitch(name):
    net = shared_net(name).eval()
    ids = range(0, len(net.stitches), 1 + len(net.stitches) // 40)
    x = images(net.input_size[1], 2)
    with torch.no_grad():
        shared = dict(all_logits(net, x, ids))
        assert sorted(shared) == list(ids)
        assert all(torch.equal(shared[i], net(x, stitch=i)) for i in ids)


def test_shared_parts_run_once():
    net = create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=5).eval()
    calls = []
    for anchor in net.anchors:
        for module in anchor.line():
            module.register_forward_hook(lambda module, *_: calls.append(module))
    with torch.no_grad():
        list(all_logits(net, torch.randn(1, *net.input_size), range(len(net.stitches))))
    small, large = (anchor.line() for anchor in net.anchors)
    starts = [stitch.legs[-1].start or 0 for stitch in net.stitches if stitch.legs[-1].anchor == 'test_vit2']
    assert [calls.count(module) for module in small] == [1] * 6
    assert [calls.count(module) for module in large] == [sum(start <= i for start in starts) for i in range(8)]


@pytest.mark.quick(
    '4-vit of other depth', '4-three legs', '7-three legs', '10000-three legs', '7-resnet', '10000-official'
)
@pytest.mark.parametrize('name', ['vit of other depth', 'swin', 'resnet', 'three legs', 'official', 'slow to fast'])
@pytest.mark.parametrize('suffix_batch', [4, 7, 10_000])
def test_stitches_with_the_same_end_may_run_as_one_batch(name, suffix_batch):
    net = shared_net(name).eval()
    x, ids = images(net.input_size[1], 2), range(len(net.stitches))
    sizes = []
    hooks = [anchor.line()[-1].register_forward_hook(lambda m, x, y: sizes.append(len(y))) for anchor in net.anchors]
    with torch.no_grad():
        merged = dict(all_logits(net, x, ids, suffix_batch))
        for hook in hooks:
            hook.remove()
        assert sorted(merged) == list(ids)
        for i in ids:
            torch.testing.assert_close(merged[i], net(x, stitch=i), rtol=1e-4, atol=1e-4)
    assert max(sizes) <= suffix_batch
    if suffix_batch > 7 and name != 'three legs':
        ends = {stitch.legs[-1].anchor for stitch in net.stitches if stitch.layers}
        assert len(sizes) == len(net.anchors) + len(ends), 'one call an anchor, and one for all that end in it'


@pytest.mark.slow  # a few seconds
def test_evaluation_with_merged_suffixes_gives_the_same_records(saved, tmp_path):
    nets = [
        evaluate(eval_settings(saved, output=str(tmp_path / str(limit)), suffix_batch=limit))[0] for limit in (0, 64)
    ]
    for one, other in zip(nets[0].records, nets[1].records, strict=True):
        assert (one.top1, one.top5, one.n) == (other.top1, other.top5, other.n)
        assert one.loss == pytest.approx(other.loss, abs=1e-5)


def test_results_equal_evaluating_each_stitch_by_itself(saved, tmp_path):
    settings = eval_settings(saved, output=str(tmp_path))
    net, _ = evaluate(settings)
    dataset = open_dataset(settings.data, 'validation', net)
    dataset.transform = clean_transform(net)
    items = [dataset[i] for i in range(10)]
    x, y = torch.stack([image for image, _ in items]), torch.tensor([int(label) for _, label in items])
    for row in rows_of(tmp_path):
        with torch.no_grad():
            logits = torch.cat([net(part, stitch=row['id']) for part in x.split(4)])
        assert row['top1'] == 100 * float((logits.argmax(1) == y).double().mean())
        assert row['loss'] == pytest.approx(float(F.cross_entropy(logits, y)), abs=1e-5)
        assert (row['n'], row['top5']) == (10, 100.0)  # 4 classes: one of the best five is right
        assert row['legs'] == str(net.stitches[row['id']])
        assert (row['flops'], row['params']) == (net.records[row['id']].flops, net.records[row['id']].params)


@pytest.mark.slow  # a few seconds
def test_accuracies_travel_with_the_weights(saved, tmp_path):
    net, _ = evaluate(eval_settings(saved, output=str(tmp_path)))
    again = StitchableNet.from_pretrained(saved)
    assert again.records == net.records
    assert all(record.n == 10 for record in again.records)
    evaluate(eval_settings(saved, output=str(tmp_path / 'few'), stitches='0-1'))
    few = StitchableNet.from_pretrained(saved)
    assert [r.n for r in few.records[:3]] == [10, 10, None]


@pytest.mark.slow  # a few seconds
def test_an_interrupted_pass_goes_on_where_it_was_and_gives_the_same(saved, tmp_path, monkeypatch):
    evaluate(eval_settings(saved, output=str(tmp_path / 'whole')))
    save = Tally.save

    def stop(self, *args):
        save(self, *args)
        if self.done == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(Tally, 'save', stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate(eval_settings(saved, output=str(tmp_path / 'cut')))
    seen = []
    monkeypatch.setattr(Tally, 'save', lambda self, *_: seen.append(self.done))
    evaluate(eval_settings(saved, output=str(tmp_path / 'cut')))
    assert seen == [10]
    assert same_results(tmp_path / 'cut', tmp_path / 'whole')


def same_results(first, second):
    names = {'stitches.jsonl', 'hits.safetensors', 'classes.csv'}
    assert {path.name for path in first.iterdir()} == {path.name for path in second.iterdir()} == names
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


@pytest.mark.slow  # seconds
@pytest.mark.parametrize('placed', [False, True])
def test_a_kill_at_any_file_loses_nothing_and_changes_no_byte(saved, tmp_path, monkeypatch, placed):
    options = {'stitches': '0-1', 'batch_size': 5}
    evaluate(eval_settings(saved, output=str(tmp_path / 'whole'), **options))
    replace_file, killed = os.replace, []
    for number in range(7):  # two batches, hits, lines, classes, the net's config.json; then nothing is left to kill
        settings = eval_settings(saved, output=str(tmp_path / str(number)), **options)
        written = []

        def stop(source, target, written=written, number=number):
            written.append(Path(target).name)
            if len(written) > number and not placed:
                raise KeyboardInterrupt
            replace_file(source, target)
            if len(written) > number:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, 'replace', stop)
            try:
                evaluate(settings)
            except KeyboardInterrupt:
                killed.append(written[-1])
        evaluate(settings)
        assert same_results(tmp_path / str(number), tmp_path / 'whole')
    assert killed == [*['progress.safetensors'] * 2, 'hits.safetensors', 'stitches.jsonl', 'classes.csv', 'config.json']


@pytest.mark.slow  # seconds
def test_a_torn_line_is_evaluated_again_and_only_it(saved, tmp_path, monkeypatch):
    evaluate(eval_settings(saved, output=str(tmp_path)))
    path = tmp_path / 'stitches.jsonl'
    whole = rows_of(tmp_path)
    path.write_text(path.read_text()[:-30])
    passes = []
    run = Evaluation._pass
    monkeypatch.setattr(Evaluation, '_pass', lambda self, todo: passes.append(todo) or run(self, todo))
    evaluate(eval_settings(saved, output=str(tmp_path)))
    assert passes == [[whole[-1]['id']]]
    assert rows_of(tmp_path) == whole


@pytest.mark.slow  # a few seconds
def test_hits_say_which_images_each_stitch_got_right(saved, tmp_path):
    evaluate(eval_settings(saved, output=str(tmp_path), stitches='1,3'))
    net, _ = evaluate(eval_settings(saved, output=str(tmp_path), stitches='0-3'))
    hits = read_hits(tmp_path / 'hits.safetensors')
    settings = eval_settings(saved)
    dataset = open_dataset(settings.data, 'validation', net)
    items = [image for batch in clean_loader(settings.data, dataset, net, range(10), 4) for image in zip(*batch)]  # noqa: B905
    assert sorted(hits) == [0, 1, 2, 3]
    for i, row in hits.items():
        with torch.no_grad():
            right = [int(net(image[None], stitch=i).argmax()) == int(label) for image, label in items]
        assert row.tolist() == right
        assert net.records[i].top1 == 100 * sum(right) / 10


def test_a_paired_difference_has_the_error_of_the_images_that_only_one_gets_right():
    random = np.random.default_rng(0)
    truth, trials = [], []
    for _ in range(400):
        hard = random.random(500)
        first, second = (hard + 0.1 * random.standard_normal(500) < bound for bound in (0.72, 0.7))
        found = compare(first, second)
        assert found.points == pytest.approx(100 * (first.mean() - second.mean()))
        assert found.error == pytest.approx(compare(second, first).error)
        truth.append(found.points)
        trials.append(found.error)
    assert np.mean(trials) == pytest.approx(np.std(truth), rel=0.1)
    assert np.mean(trials) < 0.8 * 100 * np.sqrt(0.7 * 0.3 * 2 / 500), 'an unpaired error is larger'
    assert (
        str(compare(np.array([1, 1, 0, 0], bool), np.array([1, 0, 0, 0], bool)))
        == '+25.00 +- 25.00 points over 4 images'
    )


def test_the_best_stitch_is_compared_with_the_best_anchor():
    tops = {0: 50.0, 1: 75.0, 2: 25.0, 3: 100.0, 4: None}
    records = [Record(i, '', top1=top1, anchor=i < 2) for i, top1 in tops.items()]
    hits = {i: np.arange(4) < (top1 or 0) / 25 for i, top1 in tops.items()}
    assert best_against_anchor(records, hits) == (
        'the best stitch, 3, against the best anchor, 1: +25.00 +- 25.00 points over 4 images'
    )
    assert best_against_anchor(records[:2], hits) == best_against_anchor(records, {}) == ''


def test_a_hits_file_with_a_flipped_bit_gives_nothing(tmp_path):
    path = tmp_path / 'hits.safetensors'
    write_hits(path, {4: np.array([True, False, True])}, 'this')
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert read_hits(path) == {}, at


def test_a_hits_file_of_other_results_or_none_gives_nothing(tmp_path):
    path = tmp_path / 'hits.safetensors'
    write_hits(path, {4: np.array([True, False, True])}, 'this')
    assert read_hits(path, 'this')[4].tolist() == [True, False, True]
    assert read_hits(path, 'that') == read_hits(tmp_path / 'none') == {}
    path.write_bytes(path.read_bytes()[:-1])
    assert read_hits(path) == {}


class PretendRanks(Ranks):
    """One of several processes, without the others."""

    def all_reduce(self, tensor):
        pass


@pytest.mark.slow  # a second
def test_ranks_share_the_images_and_count_none_twice(saved, tmp_path):
    settings = eval_settings(saved, output=str(tmp_path), batch_size=3, stitches='0')
    tmp_path.mkdir(exist_ok=True)
    tallies = []
    for ranks in (PretendRanks(0, 2, CPU), PretendRanks(1, 2, CPU), Ranks(0, 1, CPU)):
        tallies.append(Evaluation(settings, StitchableNet.from_pretrained(saved), tmp_path, ranks)._pass([0]))
        (tmp_path / 'progress.safetensors').unlink(missing_ok=True)
    assert [tally.sums[0, 3].item() for tally in tallies] == [6, 4, 10]
    torch.testing.assert_close(tallies[0].sums + tallies[1].sums, tallies[2].sums)
    assert torch.equal(tallies[0].hits | tallies[1].hits, tallies[2].hits)


@pytest.mark.slow  # seconds
def test_results_of_other_weights_or_images_are_refused_unless_overwritten(saved, tmp_path):
    evaluate(eval_settings(saved, output=str(tmp_path), stitches='0'))
    with pytest.raises(SnnetError, match='other weights, statistics, images, labels or precision'):
        evaluate(eval_settings(saved, output=str(tmp_path), stitches='0', images=5))
    evaluate(eval_settings(saved, output=str(tmp_path), stitches='0', images=5, overwrite=True))
    assert [row['n'] for row in rows_of(tmp_path)] == [5]


def test_images_in_folders_are_read_by_class(saved, tmp_path):
    write_images(tmp_path / 'validation', classes=4, each=3)
    net, _ = evaluate(eval_settings(saved, dataset='', data_dir=str(tmp_path), output=str(tmp_path / 'out')))
    assert {record.n for record in net.records} == {12}


def test_a_part_of_the_images_is_spread_over_all_of_them():
    assert list(spread(10, 5)) == [0, 2, 4, 6, 8]
    assert list(spread(3, None)) == [0, 1, 2]
    for wanted in (0, 11):
        with pytest.raises(SnnetError, match=f'--images {wanted} .* 10 images'):
            spread(10, wanted)


@pytest.mark.parametrize(('text', 'ids'), [('', [0, 1, 2, 3]), ('0-2', [0, 1, 2]), ('3, 1', [1, 3]), ('2-2', [2])])
def test_ids_are_read_from_a_list_of_ranges(text, ids):
    assert parse_ids(text, 4) == ids


@pytest.mark.parametrize('text', ['4', '-1', 'a', '2-1', '0,,1', '0-9'])
def test_ids_that_are_not_there_are_refused(text):
    with pytest.raises(UnknownStitch, match='0 to 3'):
        parse_ids(text, 4)


@pytest.mark.slow  # seconds
def test_the_curve_is_drawn_as_png_and_svg_and_the_table_lists_the_frontier(saved, tmp_path):
    net, _ = evaluate(eval_settings(saved, output=str(tmp_path)))
    png, svg = draw_curve(net.records, tmp_path / 'curve', net.title)
    assert png.read_bytes().startswith(b'\x89PNG')
    for words in ('mixing two anchors', 'frontier', 'anchor', 'test_vit &gt; test_vit2'):
        assert words in svg.read_text()
    lines = frontier_table(net.records).splitlines()
    assert len(lines) == len(net.frontier()) + 2
    fresh = create_stitchable_net('test_vit,test_vit2', pretrained=False)
    with pytest.raises(SnnetError, match='nothing to draw'):
        draw_curve(fresh.records, tmp_path / 'none')


@pytest.fixture
def cnn(tmp_path):
    """A saved net with BatchNorm, and images."""
    family_net('resnet').save_pretrained(tmp_path / 'net')
    write_images(tmp_path / 'data' / 'train', classes=7, each=3, size=48)
    write_images(tmp_path / 'data' / 'validation', classes=7, each=1, size=64)
    return tmp_path / 'net', {'dataset': '', 'data_dir': str(tmp_path / 'data')}


@pytest.fixture
def unjudged(monkeypatch):
    """Random images of random classes cannot show that statistics help: all are kept."""
    monkeypatch.setattr('snnet.evaluation.prepare_statistics.recalibrate', partial(recalibrate, shares=[1]))


@pytest.mark.slow  # a few seconds
def test_statistics_that_do_not_help_leave_the_net_its_outputs_and_accuracies(cnn):
    folder, data = cnn
    before, _ = evaluate(eval_settings(folder, **data, output=str(folder / 'plain')))
    after, _ = evaluate(eval_settings(folder, **data, recalibrate=1000))
    assert (after.statistics.samples, after.statistics.held_out) == (11, 10)
    assert set(after.statistics.shares) == set(range(len(after.stitches)))
    kept = [stitch for stitch, share in after.statistics.shares.items() if share == 0]
    assert 1 in kept, 'the large anchor has learned none of these classes, with whatever statistics'
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert all(torch.equal(after(x, stitch=i), before(x, stitch=i)) for i in kept)
    if len(kept) == len(before.stitches):
        assert [record.top1 for record in after.records] == [record.top1 for record in before.records]


@pytest.mark.slow  # a few seconds
def test_batch_norm_is_recalibrated_once_and_the_folder_keeps_the_statistics(cnn, unjudged):
    folder, data = cnn
    before, _ = evaluate(eval_settings(folder, **data, output=str(folder / 'plain')))
    assert before.statistics is None
    first, output = evaluate(eval_settings(folder, **data, recalibrate=1000))
    assert first.statistics.samples == 21
    loaded = StitchableNet.from_pretrained(folder)
    assert loaded.statistics.digest() == first.statistics.digest()
    assert loaded.records == first.records != before.records
    lines = (output / 'stitches.jsonl').read_bytes()
    for again in (0, 1000):
        evaluate(eval_settings(folder, **data, recalibrate=again))
    assert (output / 'stitches.jsonl').read_bytes() == lines
    few, _ = evaluate(eval_settings(folder, **data, recalibrate=9, output=str(folder / 'few')))
    assert few.statistics.samples == StitchableNet.from_pretrained(folder).statistics.samples == 9
    with pytest.raises(SnnetError, match='holds results of other weights, statistics'):
        evaluate(eval_settings(folder, **data))


@pytest.mark.slow  # a few seconds
def test_the_recorded_accuracy_is_that_of_the_loaded_and_of_the_extracted_stitch(cnn, unjudged):
    folder, data = cnn
    evaluate(eval_settings(folder, **data, recalibrate=21))
    net, settings = StitchableNet.from_pretrained(folder), eval_settings(folder, **data)
    batches = list(clean_loader(settings.data, open_dataset(settings.data, 'validation', net), net, range(7), 4))
    for i, record in enumerate(net.records):
        for network in (partial(net, stitch=i), net.extract(i)):
            with torch.no_grad():
                loss = torch.cat([F.cross_entropy(network(x), y, reduction='none') for x, y in batches])
            assert record.loss == pytest.approx(float(loss.double().mean()), rel=1e-6)


@pytest.mark.quick('change1-recalibrate is at least 0, not -1')
@pytest.mark.parametrize(
    ('change', 'told'),
    [
        ({'train_split': 'validation'}, "the splits 'validation' and 'validation' of .* share images"),
        ({'recalibrate': -1}, 'recalibrate is at least 0, not -1'),
        ({'recalibrate': 1}, 'recalibrate is 0 or at least 2 images, half of which judge .* not 1'),
    ],
)
def test_images_that_are_evaluated_are_not_recalibrated_with(cnn, change, told):
    folder, data = cnn
    with pytest.raises(SnnetError, match=told):
        evaluate(eval_settings(folder, **{**data, 'recalibrate': 5, **change}))
    assert StitchableNet.from_pretrained(folder).statistics is None


def test_recalibration_is_refused_where_there_is_no_batch_norm(saved, tmp_path):
    with pytest.raises(SnnetError, match='nothing to recalibrate'):
        evaluate(eval_settings(saved, output=str(tmp_path), recalibrate=5))


@pytest.mark.slow  # a few seconds
def test_a_folder_that_cannot_keep_the_statistics_is_evaluated_all_the_same(cnn, tmp_path, monkeypatch):
    folder, data = cnn
    monkeypatch.setattr(
        'snnet.evaluation.prepare_statistics.write_statistics',
        lambda *_: (_ for _ in ()).throw(PermissionError('read-only')),
    )
    net, output = evaluate(eval_settings(folder, **data, recalibrate=21, output=str(tmp_path / 'out')))
    assert net.statistics.samples + net.statistics.held_out == 21
    assert len(rows_of(output)) == len(net.stitches)


@pytest.mark.slow  # seconds
def test_how_images_are_prepared_is_kept_with_the_net_and_belongs_to_the_results(saved, tmp_path):
    folder = tmp_path / 'net'
    shutil.copytree(saved, folder)
    options = {'stitches': '0', 'crop_pct': 0.5, 'interpolation': 'bilinear'}
    net, _ = evaluate(eval_settings(folder, **options))
    assert net.preprocessing == {'crop_pct': 0.5, 'interpolation': 'bilinear'}
    again, _ = evaluate(eval_settings(folder, stitches='0'))
    assert again.preprocessing == net.preprocessing
    assert again.records[0] == net.records[0]
    resize, crop, *_ = clean_transform(again).transforms
    assert (resize.size, crop.size, resize.interpolation.value) == (64, (32, 32), 'bilinear')
    with pytest.raises(SnnetError, match='results of other weights'):
        evaluate(eval_settings(folder, stitches='0', crop_pct=1.0))
    again.save_pretrained(tmp_path / 'again')
    assert StitchableNet.from_pretrained(tmp_path / 'again').preprocessing == net.preprocessing


@pytest.mark.parametrize(
    ('options', 'hint'),
    [
        ({'crop_pct': 0.0}, 'crop_pct is a share above 0 and up to 1, not 0.0'),
        ({'interpolation': 'cubic'}, "interpolation is one of nearest, .*, not 'cubic'; did you mean bicubic"),
    ],
)
def test_images_cannot_be_prepared_in_any_way(saved, options, hint):
    with pytest.raises(SnnetError, match=hint):
        evaluate(eval_settings(saved, **options))
