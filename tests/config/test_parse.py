from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from snnet import SnnetError
from snnet.config.parse import parse, to_yaml
from snnet.config.sections import from_flat, options_of, to_flat, with_changes
from snnet.evaluation.eval_settings import EvalSettings
from snnet.training.check_settings import with_defaults
from snnet.training.recipes import RECIPES
from snnet.training.run_folder import RunFolder
from snnet.training.train_settings import TrainSettings

CONFIGS = sorted((Path(__file__).parents[2] / 'configs').glob('*.yaml'))


def parsed(tmp_path, text, *argv):
    file = tmp_path / 'config.yaml'
    file.write_text(text)
    return parse(TrainSettings, ['--config', str(file), *argv])


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path):
    settings = parsed(tmp_path, 'lr: 1e-3\nepochs: 7\n', '--epochs', '9', '--no-pretrained')
    assert (settings.optimizer.lr, settings.schedule.epochs) == (1e-3, 9)
    assert (settings.net.pretrained, settings.data.batch_size) == (False, 128)


@pytest.mark.parametrize(
    ('text', 'hint'),
    [
        ('epoch: 3', "'epoch'; did you mean epochs"),
        ('epochs: many', "'epochs' expects int"),
        ('epochs: 1.5', "'epochs' expects int"),
        ('pretrained: 1', "'pretrained' expects bool"),
        ('scale: [0.1]', "'scale' expects"),
        ('- a', 'not a table of settings'),
        ('a: [', 'not valid YAML'),
        ('lr: !!python/object/apply:os.getcwd []', 'not valid YAML'),
    ],
)
def test_a_wrong_key_or_value_in_a_file_is_one_sentence_that_names_it(tmp_path, text, hint):
    with pytest.raises(SnnetError, match='(?s)' + hint) as error:
        parsed(tmp_path, text)
    assert '\n' not in str(error.value)


def test_the_file_that_a_run_wrote_is_a_config(tmp_path):
    settings = parsed(tmp_path, 'lr: 1e-3\nanchors: a,b\n')
    RunFolder(with_changes(settings, output=str(tmp_path / 'run')), 2).note_settings()
    again = parse(TrainSettings, ['--config', str(tmp_path / 'run' / 'config.yaml'), '--epochs', '9'])
    assert to_flat(again) == to_flat(settings) | {'output': str(tmp_path / 'run'), 'epochs': 9}


@pytest.mark.parametrize('text', ['anchors: [a, b=w.pth]', 'anchors:\n- a\n- b=w.pth\n', 'anchors: a,b=w.pth'])
def test_networks_are_named_in_a_list_or_between_commas(tmp_path, text):
    assert parsed(tmp_path, text).net.anchors == 'a,b=w.pth'


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SnnetError, match='nowhere.yaml'):
        parse(TrainSettings, ['--config', str(tmp_path / 'nowhere.yaml')])


def test_an_unknown_flag_ends_with_exit_code_2():
    with pytest.raises(SystemExit) as stop:
        parse(TrainSettings, ['--epoch', '3'])
    assert stop.value.code == 2


def test_settings_survive_the_way_through_yaml(tmp_path):
    settings = from_flat(TrainSettings, {'scale': (0.5, 1.0), 'clip_grad': 5.0, 'plugin': ['a.py']})
    assert parsed(tmp_path, to_yaml(settings)) == settings


def test_the_folder_of_the_net_is_given_without_a_flag():
    settings = parse(EvalSettings, ['folder', '--images', '5'], positional='net')
    assert (settings.net, settings.images) == ('folder', 5)


@pytest.mark.parametrize('file', CONFIGS, ids=lambda file: file.stem)
def test_every_config_is_read_and_is_headed_by_the_command_that_uses_it(file):
    assert parse(TrainSettings, ['--config', str(file)], recipes=RECIPES).net.anchors
    head = [line for line in file.read_text().splitlines() if line.startswith('#')]
    assert any(f'train.py --config configs/{file.name}' in line for line in head)
    assert any('Expected' in line or 'Published' in line for line in head)
    assert set(yaml.safe_load(file.read_text())) <= {'recipe', *options_of(TrainSettings)}


@pytest.mark.parametrize(
    ('name', 'recipe'),
    [
        ('deit_ti_s_b', {'lr': 1e-4, 'weight_decay': 0.05, 'epochs': 50, 'drop_path': 0.1, 'aug_repeats': 3}),
        ('swin_ti_s_b', {'lr': 1e-4, 'stitch_lr': 1e-3, 'clip_grad': 5.0, 'drop_path': 0.2, 'epochs': 50}),
        ('resnet18_resnet50', {'opt': 'sgd', 'lr': 0.05, 'weight_decay': 2e-5, 'epochs': 30}),
        ('levit_192_256', {'weight_decay': 0.025, 'epochs': 100, 'clip_grad': 0.01, 'clip_mode': 'agc'}),
    ],
)
def test_the_recipes_hold_the_published_values(name, recipe):
    file = CONFIGS[0].parent / f'{name}.yaml'
    settings = with_defaults(parse(TrainSettings, ['--config', str(file)], recipes=RECIPES))
    published = {'teacher': 'regnety_160', 'distill': 'hard', 'distill_alpha': 0.5, 'batch_size': 128, **recipe}
    assert to_flat(settings).items() >= published.items()


def test_a_recipe_goes_before_what_is_above_it_and_the_command_lines_before_the_files(tmp_path):
    file = tmp_path / 'run.yaml'
    file.write_text('recipe: gentle\nlr: 0.3\n')
    recipes = {'gentle': {'lr': 0.1, 'epochs': 7, 'momentum': 0.5}, 'rough': {'momentum': 0.9, 'epochs': 9}}

    def found(*argv):
        settings = parse(TrainSettings, ['--config', str(file), *argv], recipes=recipes)
        return settings.optimizer.lr, settings.schedule.epochs, settings.optimizer.momentum

    assert found('--momentum', '0.2') == (0.3, 7, 0.2)
    assert found('--recipe', 'rough') == (0.3, 9, 0.9)
    assert found('--recipe', 'gentle', '--epochs', '1') == (0.1, 1, 0.5)
    with pytest.raises(SnnetError, match="recipe is one of gentle, rough, not 'mild'"):
        parse(TrainSettings, ['--recipe', 'mild'], recipes=recipes)


@pytest.mark.parametrize('recipe', RECIPES.values())
def test_a_recipe_holds_settings_of_training(recipe):
    assert to_flat(from_flat(TrainSettings, recipe)).items() >= recipe.items()
