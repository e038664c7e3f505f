"""Where names of classes come from, and which are refused."""

from __future__ import annotations

import pytest
import timm
from timm.models import save_for_hf

import snnet
from snnet.anchors.class_names import checked_names, imagenet_names, names_of_table, readable
from snnet.anchors.weights import load_anchor


def test_timm_names_the_classes_of_imagenet_in_the_order_of_the_logits():
    names = imagenet_names()
    assert len(names) == 1000
    assert (names[0], names[999]) == ('tench, Tinca tinca', 'toilet tissue, toilet paper, bathroom tissue')
    assert imagenet_names(7) is None


def test_folders_named_by_wordnet_become_words_and_other_names_stay():
    assert readable(['n01440764', 'n02123045']) == ('tench, Tinca tinca', 'tabby, tabby cat')
    assert readable(['n01440764', 'cat']) == ('n01440764', 'cat')
    assert readable(['a\nb', 'x' * 300]) == ('a?b', 'x' * 200)


@pytest.mark.parametrize(
    ('table', 'names'),
    [
        ({'dog': 1, 'cat': 0}, ('cat', 'dog')),
        ({'dog': 1, 'cat': 0, 'hound': 1}, ('cat', 'dog, hound')),
        ({'dog': 2, 'cat': 0}, None),
        ({'dog': 'x'}, None),
        ({}, None),
        (None, None),
    ],
)
def test_a_table_of_indices_gives_names_where_every_class_has_one(table, names):
    assert names_of_table(table) == names


@pytest.mark.parametrize(
    ('names', 'message'),
    [
        (['a'], '1 class names were given for 2 classes'),
        ('ab', "one name per class, not the text 'ab'"),
        (['a', ''], 'the name of class 1 is a printable text'),
        (['a\x1b[2J', 'b'], 'the name of class 0 is a printable text'),
        (['a', 3], 'the name of class 1 is a printable text of at most 200 characters, not 3'),
    ],
)
def test_names_that_do_not_fit_the_classes_are_refused(names, message):
    with pytest.raises(snnet.SnnetError, match=message.replace('[', r'\[')):
        checked_names(names, 2)


def test_the_labels_in_a_folder_of_timm_name_the_classes_unless_the_classifier_is_new(tmp_path):
    labels = {'label_names': ['c', 'd'], 'label_descriptions': {'c': 'a cat', 'd': 'a dog'}}
    save_for_hf(timm.create_model('test_vit', num_classes=2), tmp_path, safe_serialization=True, model_config=labels)
    assert load_anchor(f'local-dir:{tmp_path}', pretrained=True).class_names == ('a cat', 'a dog')
    assert load_anchor(f'local-dir:{tmp_path}', pretrained=True, num_classes=3).class_names is None
    assert load_anchor('test_vit', pretrained=False).class_names is None
