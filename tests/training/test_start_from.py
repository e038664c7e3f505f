"""Runs that start from networks, a saved net or a checkpoint, and tune it to the classes of a folder."""

from __future__ import annotations

import copy
import re
import shutil

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from snnet import NoWeights, SnnetError, StitchableNet, as_anchor, create_stitchable_net
from snnet.anchors.new_head import has_new_head
from snnet.calibration.fit_heads import fit_heads, head_features
from snnet.config.parse import parse, read_yaml, to_yaml
from snnet.data.datasets import count_classes
from snnet.reassembly import reassemble
from snnet.training.build_net import NetSettings, choose_trained_weights
from snnet.training.check_settings import with_defaults
from snnet.training.low_rank import merge_updates, start_updates
from snnet.training.recipes import IMPLIED, RECIPES
from snnet.training.train_settings import TrainSettings
from snnet.training.trainer import train
from tests.helpers.families import images as random_images
from tests.helpers.runs import train_settings, trainer

SLOW = pytest.mark.slow  # several runs, each of which builds nets


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Folders of images in three colors, which any features tell apart."""
    folder = tmp_path_factory.mktemp('data')
    random = torch.Generator().manual_seed(0)
    for split, each in (('train', 8), ('validation', 4)):
        for label, color in enumerate(((200, 60, 60), (60, 200, 60), (60, 60, 200))):
            for number in range(each):
                shade = torch.randint(-50, 50, (3,), generator=random).tolist()
                path = folder / split / f'color{label}' / f'{number}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new('RGB', (32, 32), tuple(c + s for c, s in zip(color, shade, strict=True))).save(path)
    return folder


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """Weights of five classes, and those of the larger network without a head, under a prefix."""
    folder = tmp_path_factory.mktemp('weights')
    torch.manual_seed(0)
    for name in ('test_vit', 'test_vit2'):
        state = timm.create_model(name, num_classes=5, img_size=32).state_dict()
        save_file(state, folder / f'{name}.safetensors')
    headless = {f'module.encoder.{key}': value for key, value in state.items() if not key.startswith('head.')}
    torch.save({'state_dict': headless}, folder / 'ssl.pth')
    return folder


def named(weights, headless=False):
    large = weights / ('ssl.pth' if headless else 'test_vit2.safetensors')
    return f'test_vit={weights}/test_vit.safetensors,test_vit2={large}'


def settings_of(output, data, start, **changes):
    given = {
        **RECIPES['own'], 'anchors': '', 'from_': str(start), 'num_classes': None, 'dataset': '',
        'data_dir': str(data), 'batch_size': 8, 'epochs': 1, 'warmup_epochs': 0, 'teacher': '', 'recalibrate': 0,
        'img_size': 32 if '=' in str(start) else None,
    }  # fmt: skip
    return with_defaults(train_settings(output, **{**given, **changes}))


def accuracy(net, data, stitch):
    from snnet.data.datasets import DataSettings, open_dataset
    from snnet.data.unaugmented_images import clean_loader

    settings = DataSettings(data_dir=str(data), workers=0)
    images, targets = next(clean_loader(settings, open_dataset(settings, 'validation', net), net, range(12), 12))
    with torch.no_grad():
        return float((net.eval()(images, stitch=stitch).argmax(1) == targets).double().mean())


def test_from_implies_a_recipe_and_is_written_without_the_underscore(tmp_path):
    given = parse(TrainSettings, ['--from', 'a,b'], recipes=RECIPES, implied=IMPLIED)
    assert (given.net.from_, given.schedule.epochs, given.net.tuned) == ('a,b', RECIPES['own']['epochs'], 'stitches')
    named = parse(TrainSettings, ['--from', 'a,b', '--recipe', 'paper'], recipes=RECIPES, implied=IMPLIED)
    assert named.schedule.epochs == TrainSettings().schedule.epochs
    (tmp_path / 'run.yaml').write_text(to_yaml(given))
    assert '\n  from: a,b\n' in to_yaml(given)
    assert read_yaml(tmp_path / 'run.yaml', TrainSettings)['from_'] == 'a,b'
    (tmp_path / 'list.yaml').write_text('from: [a, b]')
    again = parse(TrainSettings, ['--config', str(tmp_path / 'list.yaml')], recipes=RECIPES, implied=IMPLIED)
    assert (again.net.from_, again.schedule.epochs) == ('a,b', RECIPES['own']['epochs'])


@pytest.mark.slow  # a few seconds
def test_names_become_a_net_of_the_folders_classes_whose_heads_are_fitted(data, weights, tmp_path, capsys):
    folder = train(settings_of(tmp_path / 'run', data, named(weights, headless=True), epochs=0))
    net = StitchableNet.from_pretrained(folder)
    assert net.num_classes == 3
    assert [accuracy(net, data, anchor) for anchor in (0, 1)] == [1.0, 1.0]
    assert capsys.readouterr().err.count('new head, 100.0 % of held-out') == 2
    assert (tmp_path / 'run' / 'heads.safetensors').is_file()


@SLOW
def test_a_saved_net_is_the_start_with_its_stitch_layers_and_space(data, weights, tmp_path):
    torch.manual_seed(1)
    net = create_stitchable_net(named(weights), pretrained=False, img_size=32, direction='two_way')
    net.save_pretrained(tmp_path / 'net')
    found = StitchableNet.from_pretrained(train(settings_of(tmp_path / 'run', data, tmp_path / 'net', epochs=0)))
    assert found.stitches == net.stitches
    before, after = net.state_dict(), found.state_dict()
    heads = {name for name in before if '.head.' in name}
    assert all(torch.equal(after[name], before[name]) for name in before.keys() - heads)
    assert {after[name].shape[0] for name in heads} == {3}
    again = train(settings_of(tmp_path / 'again', data, tmp_path / 'run' / 'net', epochs=0))
    third = StitchableNet.from_pretrained(again).state_dict()
    assert all(torch.equal(third[name], after[name]) for name in after), 'heads that were fitted to these classes stay'


@pytest.mark.slow  # seconds
@pytest.mark.parametrize(
    'tune', ['stitches', *(pytest.param(tune, marks=pytest.mark.slow) for tune in ('heads', 'lora', 'all'))]
)
def test_what_is_tuned_moves_and_nothing_else(data, weights, tmp_path, tune):
    settings = settings_of(tmp_path / 'run', data, named(weights), tune=tune, lr=1e-2, lora_rank=2, sampler='uniform')
    with trainer(settings) as run:
        start = {name: value.clone() for name, value in create_stitchable_net(
            named(weights), pretrained=False, img_size=32, num_classes=3).state_dict().items()}  # fmt: skip
        run.run()
    end = StitchableNet.from_pretrained(tmp_path / 'run' / 'net').state_dict()
    moved = {name for name in end if not torch.equal(end[name], start[name])}
    heads = {name for name in end if '.head.' in name}
    layers = {name for name in end if name.startswith('stitch_layers.')}  # fitted, or trained
    assert heads <= moved
    body = moved - heads - layers
    if tune in ('heads', 'stitches'):
        assert not body
    elif tune == 'lora':
        assert body
        assert all(name.endswith(('qkv.weight', 'proj.weight', 'fc1.weight', 'fc2.weight')) for name in body)
        drawn = {name.split('.')[1] for name in body}
        assert drawn == {'0', '1'}
    else:
        assert any(name.endswith('norm1.weight') for name in body)


def test_low_rank_updates_start_without_effect_and_are_merged_without_one(weights):
    net = create_stitchable_net(named(weights), pretrained=False, img_size=32).eval()
    x = random_images(32, 2)
    with torch.no_grad():
        before = net(x, stitch=1)
        plain = copy.deepcopy(net)
        for i, anchor in enumerate(net.anchors):
            start_updates(anchor, 2, 0, i)
        assert torch.equal(net(x, stitch=1), before)
        for name, parameter in net.named_parameters():
            if name.endswith('.0.up'):
                parameter.add_(10)
        changed = net(x, stitch=1)
        assert not torch.allclose(changed, before)
        merge_updates(net)
        assert torch.equal(net(x, stitch=1), changed)
    assert net.state_dict().keys() == plain.state_dict().keys()
    with pytest.raises(SnnetError, match='resnet10t has no linear layers below its head'):
        start_updates(as_anchor(timm.create_model('resnet10t'), 'resnet10t'), 2, 0, 0)


@SLOW
@pytest.mark.parametrize(
    ('settings', 'said'),
    [
        ({'stitch_rank': 100}, r'--stitch-rank 100 is more than the width of 6 of 6 stitch layers \(from 64\)'),
        ({'tune': 'lora', 'lora_rank': 100}, r'--lora-rank 100 is more than the width of \d+ of \d+ linear layers'),
        ({'stitch_rank': 64}, '^$'),
    ],
)
def test_a_rank_above_the_width_of_a_layer_is_said(caplog, settings, said):
    net = create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=3, img_size=32)
    choose_trained_weights(NetSettings(**settings), net, seed=0)
    assert re.search(said, '\n'.join(caplog.messages))


def test_the_teacher_is_the_largest_anchor_with_its_fitted_head(data, weights, tmp_path):
    with trainer(settings_of(tmp_path / 'run', data, named(weights))) as run:
        teacher = run.step.answers._ask().model
        assert torch.equal(teacher.model.head.weight, run.net.anchor(1).model.head.weight)
        assert not has_new_head(teacher.model)
    assert 'teacher: largest' in to_yaml(settings_of(tmp_path / 'run', data, 'a,b'))
    assert 'teacher: regnety_160' in to_yaml(settings_of(tmp_path / 'run', data, '', anchors='a,b'))


@SLOW
def test_a_resumed_run_begins_with_the_same_heads(data, weights, tmp_path, monkeypatch):
    settings = settings_of(tmp_path / 'run', data, named(weights), epochs=2, checkpoint_steps=2)
    whole = load_file(train(settings_of(tmp_path / 'whole', data, named(weights), epochs=2)) / 'model.safetensors')
    with trainer(settings) as run:
        run.stop.received = 'SIGTERM'
        assert run.run() is None
    monkeypatch.setattr('snnet.training.fitted_heads.fit_heads', lambda *_: pytest.fail('fitted again'))
    with trainer(settings) as run:
        run.run()
    end = load_file(tmp_path / 'run' / 'net' / 'model.safetensors')
    assert all(torch.equal(end[name], whole[name]) for name in whole)


def test_own_heads_stay_where_they_do_better_and_go_where_they_are_random(data):
    torch.manual_seed(0)
    net = create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=2, img_size=32)
    targets = torch.arange(2).repeat(8)
    x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)) + 3 * targets[:, None, None, None]
    features, classes = head_features(net, [(x[:10], targets[:10]), (x[10:], targets[10:])])
    assert torch.equal(classes, targets)
    fits = fit_heads(net, features, classes)
    assert [fit.after for fit in fits] == [100, 100]
    again, _ = head_features(net, [(x, targets)])
    assert [fit.how for fit in fit_heads(net, again, classes)] == ['kept', 'kept']


@pytest.mark.parametrize(
    ('options', 'hint'),
    [
        ({'anchors': 'test_vit'}, '--anchors and --from both say what to start from'),
        ({'freeze_anchors': True, 'tune': 'heads'}, '--freeze-anchors and --tune both say'),
        ({'tune': 'head'}, "tune is one of heads, .*not 'head'; did you mean heads"),
        ({'from_': 'test_vit,test_vit2'}, 'random weights are not worth freezing: --tune stitches needs weights'),
        ({'from_': 'nowhere', 'pretrained': True}, "unknown network 'nowhere'"),
    ],
)
def test_starts_that_make_no_sense_are_refused(data, weights, tmp_path, options, hint):
    settings = {'start': named(weights), **options}
    start = settings.pop('from_', settings.pop('start'))
    settings.pop('start', None)
    with pytest.raises(SnnetError, match=hint):
        train(settings_of(tmp_path / 'run', data, start, **settings))
    assert not (tmp_path / 'run').exists()


@SLOW
def test_networks_that_were_tuned_alone_are_stitched_as_they_are(data, weights, tmp_path):
    folders = []
    for start in named(weights).split(','):
        run = tmp_path / start.partition('=')[0]
        folders.append(train(settings_of(run, data, start, tune='all', teacher='none', lr=1e-3)))
    net = StitchableNet.from_pretrained(
        train(settings_of(tmp_path / 'run', data, ','.join(map(str, folders)), epochs=0))
    )
    assert (net.num_classes, len(net.anchors)) == (3, 2)
    assert len(net.stitches) > 2
    for place, alone in enumerate(folders):
        found = net.anchor(place).model.state_dict()
        for name, tensor in StitchableNet.from_pretrained(alone).anchor(0).model.state_dict().items():
            assert name.startswith('head.') or torch.equal(tensor, found[name]), name


@SLOW
def test_a_saved_net_has_decided_its_space(data, weights, tmp_path):
    create_stitchable_net(named(weights), pretrained=False, img_size=32).save_pretrained(tmp_path / 'net')
    with pytest.raises(SnnetError, match='has decided that already: leave --img-size out'):
        train(settings_of(tmp_path / 'run', data, tmp_path / 'net', img_size=64))
    with pytest.raises(SnnetError, match='3 classes, the net 5: train.py --from fits new heads'):
        train(settings_of(tmp_path / 'run', data, '', anchors=named(weights), img_size=32))


def test_a_file_of_a_single_network_asks_for_its_name(data, weights, tmp_path, monkeypatch):
    monkeypatch.setattr('snnet.anchors.network_of_weights._SECONDS', 0.5)
    with pytest.raises(NoWeights, match=r'name the network .* as NAME=.*ssl\.pth, unless it is a whole net'):
        train(settings_of(tmp_path / 'run', data, weights / 'ssl.pth', img_size=None))


def test_a_file_of_a_network_that_is_found_says_which(data, tmp_path):
    save_file(timm.create_model('deit_tiny_patch16_224').state_dict(), tmp_path / 'mine.safetensors')
    with pytest.raises(NoWeights, match=r'holds weights of deit_tiny: name it, as in --from deit_tiny=.*mine\.saf'):
        train(settings_of(tmp_path / 'run', data, tmp_path / 'mine.safetensors', img_size=None))


def test_a_file_with_two_encoders_says_which_network_they_are_whatever_the_image_size(data, tmp_path):
    own = timm.create_model('resnet18').state_dict()
    held = {f'{side}.{name}': x.clone() for side in ('encoder_q', 'encoder_k') for name, x in own.items()}
    save_file({name: x for name, x in held.items() if '.fc.' not in name}, tmp_path / 'moco.safetensors')
    with pytest.raises(NoWeights, match=r'holds weights of resnet18: name it, as in --from resnet18=.*moco\.saf'):
        train(settings_of(tmp_path / 'run', data, tmp_path / 'moco.safetensors', img_size=64))


def test_a_class_with_one_image_is_refused_by_name(data, weights, tmp_path):
    shutil.copytree(data, tmp_path / 'data')
    for path in sorted((tmp_path / 'data' / 'train' / 'color1').iterdir())[1:]:
        path.unlink()
    with pytest.raises(SnnetError, match='at least two training images.*color1 has one'):
        train(settings_of(tmp_path / 'run', tmp_path / 'data', named(weights)))
    assert not (tmp_path / 'run').exists()


def test_the_classes_of_a_folder_are_known_before_there_is_a_net(data):
    from snnet.data.datasets import DataSettings

    assert count_classes(DataSettings(data_dir=str(data)), 'train') == 3
    assert count_classes(DataSettings(dataset='generated/8'), 'train') is None


@SLOW
@pytest.mark.parametrize('tune', ['lora', 'heads'])
def test_a_reassembled_network_is_tuned_like_any_other(data, tmp_path, tune):
    zoo = {name: as_anchor(timm.create_model(name, num_classes=5, img_size=32)) for name in ('test_vit', 'test_vit2')}
    reassemble('test_vit[:3] > test_vit2[4:]', zoo, joins='plain').save_pretrained(tmp_path / 'net')
    settings = settings_of(tmp_path / 'run', data, tmp_path / 'net', tune=tune, lr=1e-2, epochs=2)
    net = StitchableNet.from_pretrained(train(settings))
    before = StitchableNet.from_pretrained(tmp_path / 'net').state_dict()
    moved = {
        name for name, tensor in net.state_dict().items() if name in before and not torch.equal(tensor, before[name])
    }
    assert net.num_classes == 3
    assert any(name.endswith('qkv.weight') for name in moved) is (tune == 'lora')
    if tune == 'heads':
        assert all('.head.' in name for name in moved)


def test_anchors_may_keep_their_statistics_while_their_weights_move():
    anchor = as_anchor(timm.create_model('resnet10t', num_classes=3), input_size=(3, 32, 32))
    anchor.keeps_statistics = True
    before = {name: value.clone() for name, value in anchor.train().named_buffers()}
    anchor(random_images(32, 2)).sum().backward()
    assert anchor.model.bn1.weight.grad is not None
    assert anchor.model.training
    assert all(torch.equal(value, before[name]) for name, value in anchor.named_buffers())
    anchor.keeps_statistics = False
    anchor.train()(random_images(32, 2))
    assert not torch.equal(anchor.model.bn1.running_mean, before['model.bn1.running_mean'])
