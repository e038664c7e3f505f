from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from snnet import SnnetError
from snnet.config.parse import EvalSettings, TrainSettings, parse, to_yaml
from snnet.config.recipes import RECIPES

CONFIGS = sorted((Path(__file__).parents[2] / 'configs').glob('*.yaml'))


def parsed(tmp_path, text, *argv):
    file = tmp_path / 'config.yaml'
    file.write_text(text)
    return parse(TrainSettings, ['--config', str(file), *argv])


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path):
    settings = parsed(tmp_path, 'lr: 1e-3\nepochs: 7\n', '--epochs', '9', '--no-pretrained')
    assert (settings.lr, settings.epochs, settings.pretrained, settings.batch_size) == (1e-3, 9, False, 128)


@pytest.mark.parametrize(
    ('text', 'hint'),
    [
        ('epoch: 3', "'epoch'; did you mean epochs"),
        ('epochs: many', "'epochs' wants int"),
        ('epochs: 1.5', "'epochs' wants int"),
        ('pretrained: 1', "'pretrained' wants bool"),
        ('scale: [0.1]', "'scale' wants"),
        ('- a', 'no table of settings'),
        ('a: [', 'no YAML'),
        ('lr: !!python/object/apply:os.getcwd []', 'no YAML'),
    ],
)
def test_a_wrong_key_or_value_in_a_file_is_one_sentence_that_names_it(tmp_path, text, hint):
    with pytest.raises(SnnetError, match='(?s)' + hint) as error:
        parsed(tmp_path, text)
    assert '\n' not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SnnetError, match='nowhere.yaml'):
        parse(TrainSettings, ['--config', str(tmp_path / 'nowhere.yaml')])


def test_an_unknown_flag_ends_with_exit_code_2():
    with pytest.raises(SystemExit) as stop:
        parse(TrainSettings, ['--epoch', '3'])
    assert stop.value.code == 2


def test_settings_survive_the_way_through_yaml(tmp_path):
    settings = TrainSettings(scale=(0.5, 1.0), clip_grad=5.0, plugin=['a.py'])
    assert parsed(tmp_path, to_yaml(settings)) == settings


def test_the_folder_of_the_net_is_given_without_a_flag():
    settings = parse(EvalSettings, ['folder', '--images', '5'], positional='net')
    assert (settings.net, settings.images) == ('folder', 5)


@pytest.mark.parametrize('file', CONFIGS, ids=lambda file: file.stem)
def test_every_config_is_read_and_is_headed_by_the_command_that_uses_it(file):
    assert parse(TrainSettings, ['--config', str(file)], recipes=RECIPES).anchors
    head = [line for line in file.read_text().splitlines() if line.startswith('#')]
    assert any(f'train.py --config configs/{file.name}' in line for line in head)
    assert any('Expected' in line or 'Published' in line for line in head)
    assert set(yaml.safe_load(file.read_text())) <= {'recipe', *TrainSettings.__dataclass_fields__}


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
    settings = parse(TrainSettings, ['--config', str(CONFIGS[0].parent / f'{name}.yaml')], recipes=RECIPES)
    published = {'teacher': 'regnety_160', 'distill': 'hard', 'distill_alpha': 0.5, 'batch_size': 128, **recipe}
    assert {key: getattr(settings, key) for key in published} == published


def test_a_recipe_goes_before_what_is_above_it_and_the_command_lines_before_the_files(tmp_path):
    file = tmp_path / 'run.yaml'
    file.write_text('recipe: gentle\nlr: 0.3\n')
    recipes = {'gentle': {'lr': 0.1, 'epochs': 7, 'momentum': 0.5}, 'rough': {'momentum': 0.9, 'epochs': 9}}
    settings = parse(TrainSettings, ['--config', str(file), '--momentum', '0.2'], recipes=recipes)
    assert (settings.lr, settings.epochs, settings.momentum) == (0.3, 7, 0.2)
    settings = parse(TrainSettings, ['--config', str(file), '--recipe', 'rough'], recipes=recipes)
    assert (settings.lr, settings.epochs, settings.momentum) == (0.3, 9, 0.9)
    settings = parse(TrainSettings, ['--config', str(file), '--recipe', 'gentle', '--epochs', '1'], recipes=recipes)
    assert (settings.lr, settings.epochs, settings.momentum) == (0.1, 1, 0.5)
    with pytest.raises(SnnetError, match="recipe is one of gentle, rough, not 'mild'"):
        parse(TrainSettings, ['--recipe', 'mild'], recipes=recipes)


@pytest.mark.parametrize('recipe', RECIPES.values())
def test_a_recipe_holds_settings_of_training(recipe):
    assert recipe.keys() <= {setting.name for setting in fields(TrainSettings)}
    TrainSettings(**recipe)
