from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import get_pretrained_cfg

from snnet import CannotStitch, NoWeights, SnnetError, create_stitchable_net
from snnet.anchors.names import ALIASES, resolve
from snnet.anchors.weights import load_anchor, load_model
from tests.helpers.families import CLASSES, images, shake

TAGS = {
    **{f'deit_{size}': f'deit_{size}_patch16_224.fb_in1k' for size in ('tiny', 'small', 'base')},
    **{f'swin_{size}': f'swin_{size}_patch4_window7_224.ms_in22k_ft_in1k' for size in ('tiny', 'small', 'base')},
    'resnet18': 'resnet18.tv_in1k',
    'resnet50': 'resnet50.a1_in1k',
    'levit_192': 'levit_192.fb_dist_in1k',
    'levit_256': 'levit_256.fb_dist_in1k',
    'regnety_160': 'regnety_160.deit_in1k',
}


@pytest.fixture
def model():
    return shake(timm.create_model('test_vit', num_classes=CLASSES)).eval()


def saved(model, path, wrap=None):
    state = {key: value.clone() for key, value in model.state_dict().items()}
    if path.suffix == '.safetensors':
        save_file(state, path)
    else:
        torch.save({wrap: state} if wrap else state, path)
    return f'test_vit={path}'


@pytest.mark.parametrize('alias', TAGS)
def test_an_alias_means_the_checkpoint_of_the_papers(alias):
    assert resolve(alias).model == TAGS[alias]


def test_every_alias_names_weights_that_timm_knows():
    assert [full for full in ALIASES.values() if get_pretrained_cfg(full, allow_unregistered=False) is None] == []


@pytest.mark.parametrize('name', ['resnet50', 'resnet50.tv_in1k', 'vit_tiny_patch16_224', 'test_vit.r160_in1k'])
def test_a_timm_name_with_or_without_tag_is_taken(name):
    assert resolve(name).model == ALIASES.get(name, name)


@pytest.mark.parametrize(('typo', 'meant'), [('deit_tinny', 'deit_tiny'), ('resnet81', 'resnet18')])
def test_an_unknown_name_gives_a_suggestion(typo, meant):
    with pytest.raises(SnnetError, match=f"unknown network '{typo}'; did you mean .*{meant}"):
        resolve(typo)


def test_an_unknown_tag_lists_those_that_exist():
    with pytest.raises(SnnetError, match=r"no weights tagged 'nope', only .*fb_in1k"):
        resolve('deit_tiny_patch16_224.nope')


@pytest.mark.parametrize('name', ['test_vit', 'deit_tiny', 'resnet18', 'levit_192'])
def test_missing_weights_name_the_model_what_was_looked_for_and_both_ways_out(name):
    with pytest.raises(NoWeights) as caught:
        load_anchor(name, pretrained=True)
    message = str(caught.value)
    assert f'no weights for {name}' in message
    assert resolve(name).model.split('.')[0] in message.split('looked for')[1]
    assert f'{name}=FILE' in message
    assert '--no-pretrained' in message
    assert '\n' not in message


@pytest.mark.parametrize(('file', 'wrap'), [('w.safetensors', None), ('w.pth', None), ('w.pth', 'model')])
def test_a_local_file_is_loaded_and_says_the_number_of_classes(tmp_path, model, file, wrap):
    anchor = load_anchor(saved(model, tmp_path / file, wrap), pretrained=True).eval()
    assert anchor.name == 'test_vit'
    assert anchor.num_classes == CLASSES
    with torch.no_grad():
        assert torch.equal(anchor(images(160)), model(images(160)))


def test_a_local_file_is_loaded_whether_or_not_others_are_pretrained(tmp_path, model):
    anchor = load_anchor(saved(model, tmp_path / 'w.safetensors'), pretrained=False)
    assert torch.equal(anchor.model.head.weight, model.head.weight)


def test_another_number_of_classes_makes_the_classifier_again_and_keeps_the_rest(tmp_path, model):
    anchor = load_anchor(saved(model, tmp_path / 'w.safetensors'), pretrained=True, num_classes=CLASSES + 1)
    assert anchor.model.head.weight.shape[0] == anchor.num_classes == CLASSES + 1
    assert torch.equal(anchor.model.blocks[3].mlp.fc1.weight, model.blocks[3].mlp.fc1.weight)


def test_files_of_different_class_counts_cannot_be_stitched(tmp_path, model):
    other = timm.create_model('test_vit2', num_classes=CLASSES + 2)
    second = saved(other, tmp_path / 'b.safetensors').replace('test_vit', 'test_vit2')
    with pytest.raises(CannotStitch, match=r'number of classes: test_vit 7, test_vit2 9'):
        create_stitchable_net([saved(model, tmp_path / 'a.safetensors'), second], pretrained=True)


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_pickle_with_code_in_it_is_refused_and_the_code_does_not_run(tmp_path, model):
    torch.save({'model': model.state_dict(), 'extra': Bomb(tmp_path / 'ran')}, tmp_path / 'w.pth')
    with pytest.raises(NoWeights, match=r'w\.pth'):
        load_anchor(f'test_vit={tmp_path / "w.pth"}', pretrained=True)
    assert not (tmp_path / 'ran').exists()


def change(path, changes):
    state = {**timm.models.load_state_dict(str(path)), **changes}
    state = {key: value for key, value in state.items() if value is not None}
    (save_file if path.suffix == '.safetensors' else torch.save)(state, path)


@pytest.mark.parametrize(
    ('spoil', 'told'),
    [
        (
            lambda path: change(path, {'blocks.0.mlp.fc1.weight': torch.zeros(3, 5)}),
            r'blocks\.0\.mlp\.fc1\.weight is \[3, 5\] in the file and \[\d+, 64\] in the network',
        ),
        (lambda path: change(path, {'norm.weight': None, 'alien': torch.zeros(1)}), r'norm\.weight.*alien'),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), 'holds no readable weights|is cut off or damaged'),
        (lambda path: path.write_bytes(b''), 'is empty'),
        (lambda path: path.write_text('hello'), 'is a text, not weights'),
        (Path.unlink, 'there is no file'),
    ],
)
@pytest.mark.parametrize('suffix', ['safetensors', 'pth'])
def test_a_file_that_does_not_fit_is_refused_in_one_sentence(tmp_path, model, spoil, told, suffix):
    path = tmp_path / f'w.{suffix}'
    text = saved(model, path)
    spoil(path)
    with pytest.raises(NoWeights, match=told) as caught:
        load_anchor(text, pretrained=True)
    assert 'test_vit' in str(caught.value)
    assert '\n' not in str(caught.value)


def test_a_file_that_holds_no_table_of_tensors_is_refused(tmp_path):
    torch.save([1, 2, 3], tmp_path / 'w.pth')
    with pytest.raises(NoWeights, match=r'w\.pth'):
        load_anchor(f'test_vit={tmp_path / "w.pth"}', pretrained=True)


@pytest.mark.slow  # seconds
def test_an_image_size_is_taken_where_the_family_knows_one_and_where_any_will_do():
    for name in ('test_vit', 'test_resnet', 'test_convnext'):
        anchor = load_anchor(name, pretrained=False, img_size=96)
        assert anchor.input_size == (3, 96, 96)
        assert anchor.boundaries[0].grid == {'test_vit': (6, 6)}.get(name, (24, 24))


def test_drop_path_reaches_the_model():
    anchor = load_anchor('test_vit', pretrained=False, drop_path_rate=0.3)
    assert re.search(r'drop_prob=0\.300', repr(anchor.model))


def test_an_argument_that_timm_does_not_take_is_told_in_one_sentence():
    with pytest.raises(SnnetError, match=r'test_resnet does not take one of the arguments.*img_size'):
        load_model(resolve('test_resnet'), pretrained=False, img_size=96)


@pytest.mark.parametrize(
    ('names', 'size'), [('test_vit,test_vit2', 100), ('test_vit,test_vit2', 0), ('levit_128s,levit_128', 100)]
)
def test_an_image_size_that_a_network_cannot_take_is_told_as_that(names, size):
    with pytest.raises(SnnetError, match=str(size)) as caught:
        create_stitchable_net(names, pretrained=False, img_size=size)
    assert not isinstance(caught.value, NoWeights)


def test_a_negative_number_of_classes_is_refused():
    with pytest.raises(SnnetError, match='-1'):
        create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=-1)


def test_foreign_weights_are_refused_also_where_the_classifier_starts_again(tmp_path):
    save_file(timm.create_model('test_vit2', num_classes=CLASSES).state_dict(), tmp_path / 'w.safetensors')
    with pytest.raises(NoWeights, match=r'does not fit test_vit .*Unexpected key.*; it fits test_vit2: test_vit2=/'):
        load_anchor(f'test_vit={tmp_path}/w.safetensors', pretrained=True, num_classes=CLASSES + 1)
