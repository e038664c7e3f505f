from __future__ import annotations

import pytest
import torch
from timm.data import create_dataset
from timm.loss import BinaryCrossEntropy
from torch.nn import functional as F

from snnet import SnnetError
from snnet.training.class_weights import class_weights
from snnet.training.loss import make_loss
from snnet.training.mixup import MixupSettings
from tests.helpers.runs import write_images


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    """Images of three classes: four, four and one."""
    folder = tmp_path_factory.mktemp('weights')
    write_images(folder, 3, 4, size=4)
    for number in (1, 2, 3):
        (folder / 'class2' / f'{number}.png').unlink()
    return create_dataset('', str(folder))


def test_balanced_classes_count_the_same_and_the_mean_over_the_images_is_one(dataset):
    weights = class_weights('balanced', dataset, 3)
    counts = torch.tensor([4, 4, 1])
    torch.testing.assert_close(weights * counts, torch.full((3,), 3.0))
    assert class_weights('', dataset, 3) is None


def test_a_file_gives_the_weight_of_each_class_by_name(dataset, tmp_path):
    file = tmp_path / 'weights.csv'
    file.write_text('class2, 2\nclass0,1\n\nclass1,0\n')
    weights = class_weights(str(file), dataset, 3)
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.0, 2.0]) * 9 / 6)
    for content, hint in (
        ('class0,1\nclass1,1', 'no weight for class2'),
        ('class0,1\nclas1,1', "no class 'clas1'; did you mean class1"),
        ('class0', "not 'class0'"),
        ('class0,-1', "class 'class0' needs one weight of at least 0"),
        ('class0,nan', "class 'class0' needs one weight"),
    ):
        file.write_text(content)
        with pytest.raises(SnnetError, match=hint):
            class_weights(str(file), dataset, 3)
    with pytest.raises(SnnetError, match="'balanced' or a CSV file, but .*nowhere"):
        class_weights('nowhere.csv', dataset, 3)
    with pytest.raises(SnnetError, match='lists the class of every image'):
        class_weights('balanced', object(), 3)


def test_losses_are_those_of_torch_and_timm():
    logits, targets = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])
    weights = torch.tensor([1.0, 2.0, 0.5])
    plain = make_loss(MixupSettings(smoothing=0.1), False)(logits, targets)
    torch.testing.assert_close(plain, F.cross_entropy(logits, targets, label_smoothing=0.1))
    weighted = make_loss(MixupSettings(smoothing=0.1), False, weights)(logits, targets)
    torch.testing.assert_close(weighted, F.cross_entropy(logits, targets, weights, label_smoothing=0.1))
    shares = F.one_hot(targets, 3).float()
    mixed = make_loss(MixupSettings(mixup=1.0), True, weights)(logits, shares)
    torch.testing.assert_close(mixed, F.cross_entropy(logits, shares, weights))
    binary = make_loss(MixupSettings(loss='bce', smoothing=0.2), False)(logits, targets)
    torch.testing.assert_close(binary, BinaryCrossEntropy(0.2)(logits, targets))
