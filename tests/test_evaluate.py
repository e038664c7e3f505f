from __future__ import annotations

import json

import pytest
import torch
from families import NETS, images, shared_net
from runs import eval_settings, train_settings, write_images
from torch.nn import functional as F

from snnet import SnnetError, StitchableNet, UnknownStitch, create_stitchable_net
from snnet.data import clean_transform, open_dataset
from snnet.distributed import Ranks
from snnet.engine import train
from snnet.evaluate import Evaluation, evaluate, parse_ids, spread
from snnet.frontier import table
from snnet.plot import draw_curve
from snnet.tree import all_logits

CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    return train(train_settings(tmp_path_factory.mktemp('saved') / 'run', epochs=1))


def rows_of(output):
    return [json.loads(line) for line in (output / 'stitches.jsonl').read_text().splitlines()]


@pytest.mark.parametrize('name', NETS)
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


def test_results_equal_evaluating_each_stitch_by_itself(saved, tmp_path):
    settings = eval_settings(saved, output=str(tmp_path))
    net, _ = evaluate(settings)
    dataset = open_dataset(settings, 'validation', net)
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


def test_accuracies_travel_with_the_weights(saved, tmp_path):
    net, _ = evaluate(eval_settings(saved, output=str(tmp_path)))
    again = StitchableNet.from_pretrained(saved)
    assert again.records == net.records
    assert all(record.n == 10 for record in again.records)
    evaluate(eval_settings(saved, output=str(tmp_path / 'few'), stitches='0-1'))
    few = StitchableNet.from_pretrained(saved)
    assert [r.n for r in few.records[:3]] == [10, 10, None]


def test_an_interrupted_pass_goes_on_where_it_was_and_gives_the_same(saved, tmp_path, monkeypatch):
    evaluate(eval_settings(saved, output=str(tmp_path / 'whole')))
    save = Evaluation._save

    def stop(self, tally, reached):
        save(self, tally, reached)
        if reached == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(Evaluation, '_save', stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate(eval_settings(saved, output=str(tmp_path / 'cut')))
    seen = []
    monkeypatch.setattr(Evaluation, '_save', lambda self, tally, reached: seen.append(reached))
    evaluate(eval_settings(saved, output=str(tmp_path / 'cut')))
    assert seen == [10]
    assert rows_of(tmp_path / 'cut') == rows_of(tmp_path / 'whole')
    assert sorted(p.name for p in (tmp_path / 'cut').iterdir()) == ['stitches.jsonl']


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


class PretendRanks(Ranks):
    """One of several processes, without the others."""

    def all_reduce(self, tensor):
        pass


def test_ranks_share_the_images_and_count_none_twice(saved, tmp_path):
    settings = eval_settings(saved, output=str(tmp_path), batch_size=3, stitches='0')
    tmp_path.mkdir(exist_ok=True)
    sums = []
    for ranks in (PretendRanks(0, 2, CPU), PretendRanks(1, 2, CPU), Ranks(0, 1, CPU)):
        sums.append(Evaluation(settings, StitchableNet.from_pretrained(saved), tmp_path, ranks)._pass([0]).sums)
        (tmp_path / 'progress.json').unlink(missing_ok=True)
    assert [share[0, 3].item() for share in sums] == [6, 4, 10]
    torch.testing.assert_close(sums[0] + sums[1], sums[2])


def test_results_of_other_weights_or_images_are_refused_unless_overwritten(saved, tmp_path):
    evaluate(eval_settings(saved, output=str(tmp_path), stitches='0'))
    with pytest.raises(SnnetError, match='other weights, images or precision'):
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


def test_the_curve_is_drawn_as_png_and_svg_and_the_table_lists_the_frontier(saved, tmp_path):
    net, _ = evaluate(eval_settings(saved, output=str(tmp_path)))
    png, svg = draw_curve(net.records, tmp_path / 'curve', net.title)
    assert png.read_bytes().startswith(b'\x89PNG')
    for words in ('mixing two anchors', 'frontier', 'anchor', 'test_vit &gt; test_vit2'):
        assert words in svg.read_text()
    lines = table(net.records).splitlines()
    assert len(lines) == len(net.frontier()) + 2
    fresh = create_stitchable_net('test_vit,test_vit2', pretrained=False)
    with pytest.raises(SnnetError, match='nothing to draw'):
        draw_curve(fresh.records, tmp_path / 'none')
