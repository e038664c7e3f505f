"""Images with several labels: read from a table, trained with a binary loss, evaluated by their most likely class."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from snnet import SnnetError, StitchableNet
from snnet.budget.frontier import frontier_table
from snnet.data.labels import LabelledImages
from snnet.evaluation.evaluate import evaluate
from snnet.training.recipes import OWN
from snnet.training.trainer import train
from tests.helpers.runs import eval_settings, train_settings, write_images


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Twelve images for training and six others, without folders of classes, and a table of their three labels."""
    folder = tmp_path_factory.mktemp('labels')
    rows = ['file,red,big,old']
    for split, count in (('train', 12), ('val', 6)):
        write_images(folder / split, 1, count)
        rows += [f'{split}/class0/{i}.png,{i % 2},{int(i % 3 == 0)},1' for i in range(count)]
    (folder / 'labels.csv').write_text('\n'.join(rows))
    return folder


def settings_of(output, data, **changes):
    given = {
        **OWN, 'anchors': '', 'from_': 'test_vit,test_vit2', 'tune': 'all', 'num_classes': None, 'dataset': '',
        'data_dir': str(data), 'labels': str(data / 'labels.csv'), 'loss': 'bce', 'batch_size': 4, 'epochs': 1,
        'warmup_epochs': 0, 'teacher': '', 'recalibrate': 0,
    }  # fmt: skip
    return train_settings(output, **{**given, **changes})


def test_a_table_gives_the_images_of_a_split_with_their_labels(data):
    images = LabelledImages(data / 'labels.csv', data, 'validation')
    assert len(images) == 6
    assert images.reader.class_to_idx == {'red': 0, 'big': 1, 'old': 2}
    file, labels = images.reader[3]
    file.close()
    assert labels == [1, 1, 1]
    assert images.filenames()[3] == 'class0/3.png'


@pytest.mark.slow
def test_a_net_is_trained_and_evaluated_with_several_labels(data, tmp_path):
    folder = train(settings_of(tmp_path / 'run', data, adapt_steps=2, adapt_samples=8))
    net = StitchableNet.from_pretrained(folder)
    assert net.num_classes == 3
    assert net.several_labels
    assert 'are expected to be more accurate than mixing' in (tmp_path / 'run' / 'train.log').read_text()
    heads = load_file(tmp_path / 'run' / 'heads.safetensors')
    assert float(heads['0.0.bias'].abs().max()) > 0
    settings = eval_settings(folder, dataset='', data_dir=str(data), labels=str(data / 'labels.csv'))
    net, output = evaluate(settings)
    record = net.records[0]
    assert record.n == 6
    assert record.top5 == 100, 'every image is old, which is among the best three of three'
    assert record.mean_per_class is None
    assert 0 < record.mean_average_precision <= 100
    assert 'mAP' in frontier_table(net.records)
    assert not (output / 'classes.csv').exists()
    again, _ = evaluate(settings)
    assert again.records == net.records
    with pytest.raises(SnnetError, match='leave --confusion out'):
        evaluate(eval_settings(folder, dataset='', data_dir=str(data), labels=settings.data.labels, confusion=0))


@pytest.mark.parametrize(
    ('options', 'hint'),
    [
        ({'loss': 'ce'}, 'several labels .* need --loss bce'),
        ({'mixup': 0.5}, 'mixup and cutmix take images of one class each'),
        ({'teacher': 'largest'}, "a teacher's answer is one class per image"),
        ({'protect_anchors': 0.5}, 'leave --protect-anchors out'),
        ({'labels': ''}, 'images of one class only: .* or name a table with --labels'),
        ({'labels': 'nowhere.csv'}, r'the labels nowhere\.csv cannot be read'),
        ({'train_split': 'third'}, "lists no images of the split 'third', but of train, val"),
        ({'class_weights': 'balanced'}, 'lists the class of every image'),
    ],
)
def test_what_takes_an_image_for_one_of_one_class_is_refused(data, tmp_path, options, hint):
    with pytest.raises(SnnetError, match=hint):
        train(settings_of(tmp_path / 'run', data, **options))
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('content', 'hint'),
    [
        ('file', "first row is 'file' and the names"),
        ('', "first row is 'file' and the names of the classes, not ''"),
        ('file,a,b\n', 'lists no images: there is only the first row'),
        ('file,a,b\n0.png,0,1\n0.png,1,1\n', r'lists 0\.png twice: one row holds all labels'),
        ('file;a;b\n0.png;0;1\n', "not 'file;a;b'"),
        ('file,a,a\n', "first row names 'a' more than once"),
        ('file,a,,b\n0.png,0,1,1\n', "the names of the classes, not 'file,a,,b'"),
        ('0.png,0,1\n1.png,1,1\n', "first row is 'file' and the names of the classes, not '0.png,0,1'"),
        ('file,a,b\n../0.png,0,1\n', r"the path of an image below --data-dir .*, not '\.\./0\.png,0,1'"),
        ('file,a,b\n0.png,0,1\n./0.png,1,1\n', r'lists \./0\.png twice: one row holds all labels'),
        ('file,a,b\nx.png,1', "2 times 0 or 1, not 'x.png,1'"),
        ('file,a,b\nx.png,1,2', '2 times 0 or 1'),
        ('file,a,b\nx.png,1,1', r'1 images .* are missing, such as .*x\.png'),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, content, hint):
    (tmp_path / 'labels.csv').write_text(content)
    with pytest.raises(SnnetError, match=hint):
        LabelledImages(tmp_path / 'labels.csv', tmp_path, 'train')


def test_the_loss_of_several_labels_is_torchs():
    from torch.nn import functional as F

    from snnet.training.loss import make_loss
    from snnet.training.mixup import MixupSettings

    logits, labels = torch.randn(4, 3), torch.tensor([[1, 0, 1]] * 4)
    found = make_loss(MixupSettings(loss='bce'), False)(logits, labels)
    torch.testing.assert_close(found, F.binary_cross_entropy_with_logits(logits, labels.float()))
