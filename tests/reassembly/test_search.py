from __future__ import annotations

import json
import logging
import re
import shlex
import sys
from functools import partial
from importlib import util
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import create_dataset

import snnet
from snnet import SnnetError
from snnet.config.parse import parse
from snnet.config.sections import from_flat
from snnet.data.datasets import DataSettings
from snnet.evaluation.evaluate import evaluate
from snnet.reassembly import Reassembled, search as dery
from snnet.reassembly.reassemble_settings import ReassembleSettings
from snnet.reassembly.search import Search
from snnet.reassembly.training_command import training_command
from snnet.training.train_settings import TrainSettings
from snnet.training.trainer import train
from snnet.utils.plugins import import_plugins
from tests.helpers.runs import eval_settings, train_settings, write_images

ROOT = Path(__file__).parents[2]
ZOO = 'test_vit,test_resnet,test_convnext'
SMALL = {
    'zoo': ZOO,
    'pretrained': False,
    'img_size': 64,
    'dataset': 'generated/12',
    'images': 12,
    'batch_size': 6,
    'workers': 0,
    'blocks': 3,
    'epsilon': 0.6,
    'size': 'nodes',
    'count': 3,
    'init_samples': 6,
    'device': 'cpu',
}


after_a_pass = partial(pytest.param, marks=pytest.mark.slow)
"""Input whose fault shows after the zoo is loaded: about a second each."""


def shop(output, **changes):
    return Search(from_flat(ReassembleSettings, {**SMALL, 'output': str(output), **changes}))


def found(made):
    similarity = made.similarity()
    return made.candidates(similarity, made.partition(similarity))


@pytest.fixture
def script(monkeypatch):
    spec = util.spec_from_file_location('reassemble_script', ROOT / 'reassemble.py')
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(output, **changes):
        argv = ['reassemble.py']
        for name, value in {**SMALL, 'output': output, **changes}.items():
            if value is None:
                continue
            flag = name.replace('_', '-')
            argv += [f'--{flag}' if value else f'--no-{flag}'] if isinstance(value, bool) else [f'--{flag}', str(value)]
        monkeypatch.setattr('sys.argv', argv)
        return module.main()

    return run


@pytest.mark.slow  # a few seconds
def test_one_command_ranks_builds_fits_saves_and_draws(script, tmp_path, capsys):
    output, budget = tmp_path / 'out', {'flops': 8e6, 'params': 4e5}
    write_images(tmp_path / 'images', classes=2, each=6)  # other classes than the networks'
    assert script(output, dataset='', data_dir=tmp_path / 'images', rank='naswot', **budget) == 0
    rows = [json.loads(line) for line in (output / 'assemblies.jsonl').read_text().splitlines()]
    assert 1 < len(rows) <= 3
    assert rows == sorted(rows, key=lambda row: -row['naswot'])
    assert all(row[name] <= limit for row in rows for name, limit in budget.items())
    printed = capsys.readouterr().out
    assert [printed.index(row['network']) for row in rows] == sorted(printed.index(row['network']) for row in rows)
    record = snnet.StitchableNet.from_pretrained(output / 'net').records[0]
    assert (record.flops, record.params) == (rows[0]['flops'], rows[0]['params'])
    assert str(Reassembled.from_pretrained(output / 'net')) == rows[0]['network']
    pictures = {f'{name}.{suffix}' for name in ('similarity', 'partition', 'assemblies') for suffix in ('png', 'svg')}
    assert pictures < {path.name for path in output.iterdir()}


@pytest.mark.slow
def test_the_network_is_trained_with_frozen_blocks_and_evaluated(tmp_path):
    made = shop(tmp_path / 'out')
    folder = made.finish(found(made)[0].network)
    trained = train_settings(
        tmp_path / 'run',
        anchors=str(folder),
        freeze_anchors=True,
        img_size=None,
        num_classes=5,
        epochs=1,
        recalibrate=0,
    )
    before = Reassembled.from_pretrained(folder)
    train(trained)
    net, _ = evaluate(eval_settings(tmp_path / 'run' / 'net'))
    assert net.records[0].n == 10
    assert net.num_classes == 5
    after = Reassembled.from_pretrained(tmp_path / 'run' / 'net')
    then = before.state_dict()
    moved = {name for name, value in after.state_dict().items() if name in then and not value.equal(then[name])}
    assert moved
    assert {name.partition('.')[0] for name in moved} == {'seams'}


@pytest.mark.slow
def test_the_same_command_takes_up_the_similarity_and_other_facts_measure_again(tmp_path, monkeypatch):
    first = [c.row(0) for c in found(shop(tmp_path))]
    measured = dery.measure_similarity
    calls = []
    monkeypatch.setattr(dery, 'measure_similarity', lambda *a, **k: calls.append(1) or measured(*a, **k))
    assert [c.row(0) for c in found(shop(tmp_path, flops=1e9))] == first
    assert not calls
    facts = {'seed': 1, 'pool': True, 'images': 8, 'batch_size': 4, 'estimator': 'biased', 'split': 'validation'}
    names = set()
    made = shop(tmp_path)
    for name, value in facts.items():
        made.settings = from_flat(ReassembleSettings, {**SMALL, 'output': str(tmp_path), name: value})
        names.add(made._fingerprint())
    assert len(names) == len(facts)


@pytest.mark.slow  # seconds
@pytest.mark.parametrize(
    'options', [{'count': 8}, {'stem': 'new', 'head': 'new', 'joins': 'published', 'zoo': 'test_resnet,test_convnext'}]
)
def test_costs_from_tables_are_those_of_the_networks_built_to_the_last_unit(tmp_path, options):
    built = found(shop(tmp_path, **options))
    behind = [c for c in built if any(leg.anchor == 'test_vit' for leg in c.assembly.legs[1:])]
    assert len(built) >= 3
    assert [(c.flops, c.params) for c in built] == [(c.assembly.flops, c.assembly.params) for c in built]
    assert behind or 'zoo' in options  # these run without the class token of their network


@pytest.mark.slow
def test_assemblies_that_miss_the_budget_once_built_or_do_not_run_are_left_out_with_a_line(tmp_path, caplog):
    made = shop(tmp_path, zoo='test_vit,test_convnext', resample=False, count=6)
    logging.getLogger('snnet').propagate = True
    everything = found(made)
    dearer = [c for c in everything if c.flops > 2 * c.assembly.flops]  # blocks on a finer grid than their own
    assert dearer
    budget = dearer[0].flops / 1.5
    made.settings.assembly.flops = budget
    assert all(c.flops <= budget for c in found(made))
    assert f'{dearer[0].network} has flops = {dearer[0].flops:.6g} once built' in caplog.text


@pytest.mark.slow  # seconds
def test_a_folder_of_images_without_classes_or_splits_will_do(tmp_path):
    write_images(tmp_path / 'images', classes=1, each=8)
    flat = tmp_path / 'images' / 'class0'
    assert len(shop(tmp_path / 'out', dataset='', data_dir=str(flat)).images) == 8


@pytest.mark.slow  # a few seconds
def test_networks_without_weights_are_drawn_by_the_seed(tmp_path):
    def weights(seed):
        return shop(tmp_path, zoo='test_resnet,test_convnext', seed=seed)._digests

    assert weights(0) == weights(0)
    assert weights(0) != weights(1)


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        ({'zoo': 'test_vit'}, 'at least two networks to take blocks from, --zoo names 1'),
        ({'params': -3}, 'a budget must be a positive finite number, but params=-3.0 was given'),
        ({'networks': 5}, 'an assembly of 3 blocks from a zoo of 3 has 1 to 3 networks, not 5'),
        ({'blocks': 1}, 'blocks is at least 2, not 1'),
        ({'epsilon': -1.0}, 'epsilon is at least 0, not -1'),
        ({'pick': 3}, '--pick 3 is not in a list of --count 3'),
        ({'legs': 'test_vit[:]', 'pick': 2}, 'there is no list from which to --pick 2'),
        ({'num_classes': 0}, 'num_classes is at least 1, not 0'),
        ({'init_ridge': -1.0}, 'init_ridge is at least 0, not -1'),
        ({'legs': 'test_vit[:1] > test_vit2[1:]'}, "no network 'test_vit2' in the zoo"),
        ({'legs': 'test_vit[:blocks.7] > test_resnet[1:]'}, "'blocks.7' is not a module of the line of test_vit"),
        ({'legs': f'test_vit[:{"9" * 5000}] > test_resnet[1:]'}, r"'9+\.\.\.' is not a module of the line of test_vit"),
        ({'legs': 'test_vit[:²] > test_resnet[1:]'}, "'²' is not a module of the line of test_vit"),
        ({'legs': f'test_vit[:1] >{"9" * 5000}> test_resnet[1:]'}, 'the stride of a join has 5000 digits'),
        ({'dataset': 'generated/²'}, "'generated/²' needs a number of images"),
        ({'device': 'nope'}, "there is no device 'nope' here"),
        ({'plugin': str(ROOT / 'LICENSE')}, 'is not a Python file: its name ends in .py'),
        ({'head': 'own', 'num_classes': 7}, '--head own: no network of the zoo has a head of 7 classes'),
        ({'zoo': 'test_vit,test_vit'}, "'test_vit' is named twice"),
        ({'zoo': 'test_vit,test_rexnet'}, "unknown network 'test_rexnet'; did you mean test_resnet"),
        after_a_pass(
            {'zoo': 'test_vit,crossvit_9_240', 'img_size': None}, 'crossvit_9_240 cannot be split .*: parallel branches'
        ),
        after_a_pass(
            {'zoo': ZOO, 'blocks': 7}, 'test_resnet has .* modules on its line: it cannot be cut into 7 blocks'
        ),
        after_a_pass({'epsilon': 0.0}, 'no cut into 3 blocks keeps every block below 1/3 of its network'),
        after_a_pass(
            {'params': 10}, r'no assembly has params <= 10: the nearest, .* has params = \d+, .* times the budget'
        ),
        ({'flops': -1}, 'a budget must be a positive finite number, but flops=-1.0 was given'),
        ({'images': 3}, 'unbiased CKA compares at least 4 images at once, but images=3'),
        after_a_pass({'dataset': 'generated/3'}, 'CKA needs at least 4 images to compare networks with, 3 given'),
        ({'dataset': ''}, 'no images: name their folder with --data-dir'),
        ({'rank': 'accuracy'}, "rank is one of similarity, naswot, naswot_plain, not 'accuracy'"),
        ({'pretrained': True}, 'no weights for test_vit'),
    ],
)
def test_bad_input_gets_one_sentence(script, tmp_path, capsys, changes, sentence):
    assert script(tmp_path / 'out', **changes) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith('reassemble.py: ')
    assert re.search(sentence, told), told


@pytest.mark.parametrize('output', [__file__, f'{__file__}/deeper/still'])
def test_an_output_that_is_a_file_is_refused_before_anything_is_loaded(monkeypatch, output):
    monkeypatch.setattr('snnet.reassembly.search.load_zoo', lambda *_, **__: pytest.fail('networks are loaded'))
    with pytest.raises(SnnetError, match=r"'.*test_search\.py' is a file, so there cannot be a folder"):
        shop(output)


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        ({'legs': 'test_vit[:99] > test_resnet[1:]'}, 'positions of test_vit run from 0 to 6'),
        ({'legs': 'test_vit[:1] >0> test_resnet[1:]'}, 'the stride of a join must be 1 to 16, not 0'),
        ({'legs': 'test_vit[:1] > test_resnet[1:]', 'params': 10}, 'has params = .* times the budget'),
        ({'dataset': '', 'data_dir': 'split', 'split': 'nosuch'}, "has no split 'nosuch', but 'train'"),
    ],
)
def test_legs_that_do_not_run_and_a_missing_split_are_refused_before_anything_is_written(tmp_path, changes, sentence):
    write_images(tmp_path / 'images' / 'train', classes=2, each=4)
    if 'data_dir' in changes:
        changes = {**changes, 'data_dir': str(tmp_path / 'images')}
    with pytest.raises(SnnetError, match=sentence):
        shop(tmp_path / 'out', **{'zoo': 'test_vit,test_resnet', **changes})
    assert not (tmp_path / 'out').exists()


def test_one_checkpoint_under_two_names_is_refused(tmp_path):
    save_file(timm.create_model('test_vit').state_dict(), tmp_path / 'a.safetensors')
    zoo = f'test_vit={tmp_path}/a.safetensors,test_vit.r160_in1k={tmp_path}/a.safetensors'
    with pytest.raises(SnnetError, match='are the same network under two names'):
        shop(tmp_path, zoo=zoo, img_size=None)


def test_kendalls_tau_counts_pairs_in_and_out_of_order():
    import_plugins([str(ROOT / 'examples' / 'reassemble_zoo.py')])
    kendall = sys.modules['reassemble_zoo'].kendall
    assert kendall([1, 2, 3, 4], [10, 20, 30, 40]) == (1, 0)
    assert kendall([1, 2, 3, 4], [4, 3, 2, 1])[0] == -1
    tau, error = kendall([1, 2, 3, 4, 5], [1, 3, 2, 4, 4])  # 8 pairs in order, 1 not, 1 tied
    assert tau == pytest.approx(7 / (10 * 9) ** 0.5)
    assert error > 0


@pytest.mark.slow
def test_another_pick_for_other_classes_is_saved_and_the_printed_command_trains_it(script, tmp_path, capsys):
    output = tmp_path / 'out'
    write_images(tmp_path / 'images', classes=2, each=6)
    assert script(output, dataset='', data_dir=tmp_path / 'images', pick=1, num_classes=2, count=2) == 0
    rows = [json.loads(line) for line in (output / 'assemblies.jsonl').read_text().splitlines()]
    net = snnet.StitchableNet.from_pretrained(output / 'net')
    assert (net.num_classes, net.records[0].flops, net.records[0].params) == (2, rows[1]['flops'], rows[1]['params'])
    assert str(Reassembled.from_pretrained(output / 'net')) == rows[1]['network']
    printed = next(line for line in capsys.readouterr().err.splitlines() if line.startswith('next: '))
    words = shlex.split(printed.removeprefix('next: python train.py'))
    assert words[:2] == ['--from', str(output / 'net')]
    assert words[-2:] == ['--batch-size', '12'], 'there are fewer images than one batch of the recipe'
    small = {'epochs': 1, 'warmup-epochs': 0, 'batch-size': 4, 'workers': 0, 'recalibrate': 0, 'device': 'cpu'}
    words += [f'--{name}={value}' for name, value in {**small, 'output': tmp_path / 'run'}.items()]
    train(parse(TrainSettings, words))
    assert snnet.StitchableNet.from_pretrained(tmp_path / 'run' / 'net').num_classes == 2


@pytest.mark.slow  # a few seconds
def test_a_network_of_given_legs_is_saved_without_a_search(script, tmp_path, capsys):
    output = tmp_path / 'out'
    legs = 'test_resnet[:layer2.0] >2> test_convnext[stages.2.blocks.0:]'
    assert script(output, zoo='test_resnet,test_convnext', legs=legs, num_classes=3) == 0
    assert not list(output.glob('similarity*'))
    saved = Reassembled.from_pretrained(output / 'net')
    assert saved.strides == (2,)
    assert saved.num_classes == 3
    assert script(output, zoo='test_resnet,test_convnext', legs=legs, params=10) == 2
    assert re.search(r'has params = \d+ once built, .* times the budget', capsys.readouterr().err)


@pytest.mark.slow
def test_a_checkpoint_without_a_classifier_gives_blocks_and_the_same_legs_are_saved_with_random_weights(
    script, tmp_path, capsys
):
    headless = {
        f'module.{k}': v for k, v in timm.create_model('test_convnext').state_dict().items() if 'head.fc' not in k
    }
    save_file(headless, tmp_path / 'ssl.safetensors')
    save_file(timm.create_model('test_resnet').state_dict(), tmp_path / 'sup.safetensors')
    zoo = f'test_resnet={tmp_path}/sup.safetensors,test_convnext={tmp_path}/ssl.safetensors'
    last = zoo.partition(',')[2]  # the file may be named, as in the zoo
    given = {'zoo': zoo, 'legs': f'test_resnet[:layer2.0] > {last}[stages.2.blocks.0:]', 'num_classes': 3}
    assert script(tmp_path / 'out', **given) == 0
    assert script(tmp_path / 'out', **given, random_weights=True) == 0
    assert '--tune all' in capsys.readouterr().err
    trained, random = (Reassembled.from_pretrained(tmp_path / 'out' / name) for name in ('net', 'net-random'))
    assert str(trained) == str(random)
    assert trained.num_classes == random.num_classes == 3
    own, fresh = trained.state_dict(), random.state_dict()
    assert {name: tensor.shape for name, tensor in own.items()} == {n: tensor.shape for n, tensor in fresh.items()}
    block = 'legs.1.model.stages.2.blocks.0.mlp.fc1.weight'
    assert torch.equal(own[block], headless[f'module.{block.removeprefix("legs.1.model.")}'])
    assert not torch.equal(own[block], fresh[block])


def test_the_training_command_names_what_training_needs(tmp_path):
    write_images(tmp_path / 'flat' / 'only', 1, 1)
    data = DataSettings(data_dir='images', class_map='map.txt')
    images = create_dataset('', str(tmp_path / 'flat'))
    assert training_command(Path('net'), data, 'train', images, ['a.py'], False) == (
        'python train.py --from net --plugin a.py --data-dir FOLDER, a folder with one folder of images per class in '
        'each split'
    )
    write_images(tmp_path / 'two', 2, 20)
    images = create_dataset('', str(tmp_path / 'two'))
    assert training_command(Path('net'), data, 'val', images, [], True) == (
        'python train.py --from net --tune all --data-dir images --class-map map.txt --train-split val'
    )
