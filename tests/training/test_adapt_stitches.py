"""Stitches that adapt at the end of a run."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import snnet
from snnet import SnnetError
from snnet.calibration.adapt import adaptable
from snnet.calibration.adaptation_work import AdaptationWork
from snnet.config.parse import parse
from snnet.training import adapt_stitches
from snnet.training.recipes import RECIPES
from snnet.training.train_settings import TrainSettings
from snnet.training.trainer import train
from tests.helpers.runs import train_settings

ADAPTING = {
    'epochs': 0, 'freeze_anchors': True, 'init': 'kaiming', 'adapt_steps': 3, 'adapt_samples': 12, 'recalibrate': 0,
}  # fmt: skip


def own(folder):
    return snnet.StitchableNet.from_pretrained(folder / 'net').own_parameters.tensors()


def test_a_run_without_a_step_adapts_its_stitches_and_leaves_the_anchors_as_they_are(tmp_path):
    without = {**ADAPTING, 'adapt_steps': None}
    plain = snnet.StitchableNet.from_pretrained(train(train_settings(tmp_path / 'plain', **without)))
    net = snnet.StitchableNet.from_pretrained(train(train_settings(tmp_path / 'adapted', **ADAPTING)))
    assert plain.own_parameters is None
    assert net.own_parameters.stitches
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters(), strict=True))
    assert 'diverge' in (tmp_path / 'adapted/train.log').read_text()
    assert not (tmp_path / 'adapted/adapting').exists()


@pytest.mark.slow  # three runs
def test_a_run_that_dies_while_stitches_adapt_goes_on_from_those_that_are_done(tmp_path, monkeypatch):
    train(train_settings(tmp_path / 'whole', **ADAPTING))
    fit, fitted = AdaptationWork._fit, []

    def dies(self, stitch, *args):
        if len(fitted) == 2:
            raise KeyboardInterrupt
        fitted.append(stitch)
        return fit(self, stitch, *args)

    with monkeypatch.context() as patch:
        patch.setattr(AdaptationWork, '_fit', dies)
        with pytest.raises(KeyboardInterrupt):
            train(train_settings(tmp_path / 'cut', **ADAPTING))
    monkeypatch.setattr(AdaptationWork, '_fit', lambda self, i, *args: (fitted.append(i), fit(self, i, *args))[1])
    train(train_settings(tmp_path / 'cut', **ADAPTING))
    assert len(fitted) == len(set(fitted))
    whole, cut = own(tmp_path / 'whole'), own(tmp_path / 'cut')
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.slow  # two runs
def test_a_run_that_dies_before_its_net_is_saved_does_not_adapt_again(tmp_path, monkeypatch):
    def dies(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr('snnet.training.trainer.save_net', dies)
        with pytest.raises(KeyboardInterrupt):
            train(train_settings(tmp_path, **ADAPTING))
    monkeypatch.setattr(AdaptationWork, '_fit', lambda *args: pytest.fail('a stitch adapts again'))
    train(train_settings(tmp_path, **ADAPTING))
    assert own(tmp_path)
    assert not (tmp_path / 'adapting').exists()


@pytest.mark.parametrize(
    ('changes', 'told'),
    [
        ({'anchors': 'test_vit'}, 'no stitch with a join, so there is nothing to adapt'),
        ({'adapt_lr': 0.0}, 'adapt_lr is a positive finite number, not 0.0'),
        ({'adapt_steps': None, 'adapt_minutes': float('inf')}, 'adapt_minutes is a finite number, not inf'),
    ],
)
def test_what_could_not_be_adapted_is_refused_before_anything_is_written(tmp_path, changes, told):
    with pytest.raises(SnnetError, match=told):
        train(train_settings(tmp_path / 'run', **{**ADAPTING, **changes}))
    assert not (tmp_path / 'run').exists()


def test_a_run_that_would_store_too_much_names_what_train_py_can_do(tmp_path, monkeypatch):
    monkeypatch.setattr(adapt_stitches, 'adaptable', partial(adaptable, storage=0.01))
    with pytest.raises(SnnetError, match=r'allowed: train without adapting, then adapt some \(snnet adapt FOLDER --st'):
        train(train_settings(tmp_path / 'run', **ADAPTING))
    assert not (tmp_path / 'run').exists()


def test_the_recipe_moves_no_anchor_and_takes_no_step():
    settings = parse(TrainSettings, ['--anchors', 'test_vit,test_vit2', '--recipe', 'adapt'], recipes=RECIPES)
    assert settings.net.freeze_anchors
    assert settings.schedule.epochs == 0
    assert settings.adaptation.wanted
    assert (settings.net.direction, settings.net.stage_ends) == ('two_way', True)
