from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from snnet import SnnetError, create_stitchable_net
from snnet.config.sections import with_changes
from snnet.data.datasets import open_dataset
from snnet.data.transforms import train_transform
from snnet.data.unaugmented_images import clean_loader, initialization_images
from snnet.utils.distributed import Ranks
from snnet.utils.seeds import generator, key, seeded_libraries
from tests.helpers.runs import train_images, train_settings, write_images

ALONE = Ranks(0, 1, torch.device('cpu'))


@pytest.fixture(scope='module')
def net():
    return create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=4, img_size=32)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('images')
    write_images(path / 'train', classes=4, each=6)
    return path


def settings_of(folder, **changes):
    return train_settings('unused', data_dir=str(folder), dataset='', aa='rand-m9-mstd0.5-inc1', **changes)


def batches_of(settings, net, ranks=ALONE, epoch=0):
    return [(x.clone(), y.clone()) for x, y in train_images(settings, net, ranks).epoch(epoch)]


def draws_of(images, epoch=0, first=0):
    return [draw for batch in images._draws.batches(epoch, first) for draw in batch]


def same(one, other):
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True))


def test_augmented_batches_depend_on_the_seed_and_the_epoch_but_not_on_the_number_of_workers(net, folder):
    first = batches_of(settings_of(folder), net)
    assert same(first, batches_of(settings_of(folder), net))
    assert same(first, batches_of(settings_of(folder, workers=2), net))
    assert not same(first, batches_of(settings_of(folder), net, epoch=1))
    assert not same(first, batches_of(settings_of(folder, seed=1), net))


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('repeats', [0, 3])
def test_an_epoch_taken_up_in_the_middle_goes_on_with_the_same_bits_and_reads_no_earlier_image(
    net, folder, workers, repeats
):
    images = train_images(settings_of(folder, workers=workers, aug_repeats=repeats), net, ALONE)
    whole = list(images.epoch(1))
    rest = list(images.epoch(1, first=2))
    assert len(whole) == 6
    assert same(whole[2:], rest)
    assert list(images.epoch(1, first=6)) == []
    assert same(whole, images.epoch(1))
    assert draws_of(images, 1)[8:] == draws_of(images, 1, first=2)


def test_the_seed_of_the_data_alone_decides_order_and_augmentation(net, folder):
    first = batches_of(settings_of(folder, seed=1), net)
    assert same(first, batches_of(settings_of(folder, seed=5, data_seed=1), net))
    assert not same(first, batches_of(settings_of(folder, seed=1, data_seed=0), net))


def test_two_ranks_share_the_images_of_an_epoch_without_overlap(net, folder):
    shares = [train_images(settings_of(folder), net, Ranks(rank, 2, torch.device('cpu'))) for rank in (0, 1)]
    drawn = [draw.image for images in shares for draw in draws_of(images)]
    assert sorted(drawn) == list(range(24))


def test_repeated_augmentation_shows_an_image_several_times_and_each_time_otherwise(net, folder):
    images = train_images(settings_of(folder, aug_repeats=3), net, ALONE)
    draws = draws_of(images)
    assert len(draws) == 24
    assert len({draw.image for draw in draws}) == 8
    assert len({draw.key for draw in draws}) == 24


def test_posterizing_never_asks_pillow_for_zero_bits(net):
    transform = train_transform(settings_of('unused').augmentation, net)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    steps = [step for step in transform.transforms if hasattr(step, 'ops')]
    posterize = [op for step in steps for op in step.ops if op.name.startswith('Posterize')]
    assert posterize
    for op in posterize:
        assert op.level_fn(10, op.hparams) == (1,)
        op.prob, op.magnitude, op.magnitude_std = 1.0, 10, 0
        assert op(image).size == (32, 32)


def pixels_of(batches):
    return {image.numpy().tobytes() for images, _ in batches for image in images}


def test_initialization_takes_a_random_choice_that_the_ranks_share(net, folder):
    settings = settings_of(folder, init_samples=9)
    whole, count = initialization_images(settings.data, net, ALONE, 9, 0)
    shares = [initialization_images(settings.data, net, Ranks(rank, 2, torch.device('cpu')), 9, 0) for rank in (0, 1)]
    assert count == 9
    assert [n for _, n in shares] == [5, 4]
    chosen = pixels_of(whole)
    assert len(chosen) == 9
    assert chosen == {image for share, _ in shares for image in pixels_of(share)}
    assert chosen != pixels_of(clean_loader(settings.data, open_dataset(settings.data, 'train', net), net, range(9), 4))


@pytest.mark.parametrize(
    ('changes', 'hint'),
    [
        ({'data_dir': 'nowhere'}, "no folder 'nowhere'"),
        ({'data_dir': ''}, '--data-dir'),
        ({'dataset': 'generated/x'}, 'generated/256'),
        ({'dataset': 'generated/0'}, 'generated/256'),
        ({'class_map': 'map.pkl'}, "'map.pkl' is a pickle, which can run code"),
        ({'batch_size': 25}, '24 images are fewer than one batch of 25'),
    ],
)
def test_data_that_cannot_be_used_is_refused_in_one_sentence(net, folder, changes, hint):
    settings = with_changes(settings_of(folder), **changes)
    with pytest.raises(SnnetError, match=hint):
        train_images(settings, net, ALONE)


def test_folders_without_images_are_refused(net, tmp_path):
    with pytest.raises(SnnetError, match="no images in the split 'train'"):
        open_dataset(settings_of(tmp_path).data, 'train', net)
    (tmp_path / 'train' / 'class0').mkdir(parents=True)
    (tmp_path / 'train' / 'class0' / 'note.txt').write_text('no image')
    with pytest.raises(SnnetError, match="no images in the split 'train'"):
        open_dataset(settings_of(tmp_path).data, 'train', net)


@pytest.mark.parametrize(('split', 'first'), [('train', 'class3'), ('validation', 'cat')])
def test_training_and_validation_with_different_classes_are_refused(net, tmp_path, split, first):
    write_images(tmp_path / 'train', classes=4, each=1)
    write_images(tmp_path / 'val', classes=4, each=1)
    assert len(open_dataset(settings_of(tmp_path).data, split, net)) == 4
    (tmp_path / 'val' / 'class3').rename(tmp_path / 'val' / 'cat')
    with pytest.raises(SnnetError, match=f"different classes: only the first has '{first}'") as error:
        open_dataset(settings_of(tmp_path).data, split, net)
    assert '\n' not in str(error.value)
    table = tmp_path / 'table.txt'
    table.write_text('class0\nclass1\nclass2\nclass3\n')
    (tmp_path / 'val' / 'cat').rename(tmp_path / 'val' / 'dog')
    assert len(open_dataset(settings_of(tmp_path, class_map=str(table)).data, 'train', net)) == 4


@pytest.mark.parametrize('split', ['train', 'validation', 'test'])
def test_a_class_folder_without_images_is_refused_by_name(net, tmp_path, split):
    write_images(tmp_path / split, classes=4, each=1)
    (tmp_path / split / 'big').mkdir()
    (tmp_path / split / '.hidden').mkdir()
    with pytest.raises(SnnetError, match="class folders of .* hold no images: 'big'; fill or remove"):
        open_dataset(settings_of(tmp_path).data, split, net)


def test_a_missing_split_is_refused_where_there_are_others_but_a_plain_folder_is_its_own_split(net, tmp_path):
    write_images(tmp_path / 'all' / 'train', classes=4, each=1)
    with pytest.raises(SnnetError, match="has no split 'validation', but 'train'"):
        open_dataset(settings_of(tmp_path / 'all').data, 'validation', net)
    assert len(open_dataset(settings_of(tmp_path / 'all' / 'train').data, 'validation', net)) == 4


def test_a_symbolic_link_that_leads_back_is_refused(net, tmp_path):
    write_images(tmp_path / 'train', classes=4, each=1)
    (tmp_path / 'train' / 'class0' / 'again').symlink_to(tmp_path / 'train')
    with pytest.raises(SnnetError, match="leads to a folder that is read already: '.*class0' is '.*class0'"):
        open_dataset(settings_of(tmp_path).data, 'train', net)


def test_images_in_a_folder_of_a_class_are_said_to_be_another_class(net, tmp_path, caplog):
    write_images(tmp_path / 'train', classes=3, each=1)
    write_images(tmp_path / 'train' / 'class1', classes=1, each=1)
    (tmp_path / 'train' / 'class1' / 'class0').rename(tmp_path / 'train' / 'class1' / 'other')
    assert len(open_dataset(settings_of(tmp_path).data, 'train', net)) == 4
    assert "inside of class folders, each a class by itself: 'class1/other'" in caplog.text


def test_classes_in_nested_folders_are_the_leaves(net, tmp_path):
    write_images(tmp_path / 'train' / 'animals', classes=4, each=1)
    assert len(open_dataset(settings_of(tmp_path).data, 'train', net)) == 4


def test_splits_in_capital_letters_are_not_taken_for_classes(net, tmp_path):
    for split in ('Train', 'Val'):
        write_images(tmp_path / split, classes=4, each=1)
    with pytest.raises(SnnetError, match=r"no split 'train', but 'Train', 'Val' \(splits are written in small letters"):
        open_dataset(settings_of(tmp_path).data, 'train', net)


def test_images_that_are_left_out_or_merged_are_said_once(net, tmp_path, caplog):
    write_images(tmp_path / 'train', classes=4, each=2)
    (tmp_path / 'train' / 'class0' / '1.png').rename(tmp_path / 'train' / 'class0' / '1.WEBP')
    for _ in range(2):
        assert len(open_dataset(settings_of(tmp_path).data, 'train', net)) == 7
    assert caplog.text.count('1 images of') == 1
    assert r"because they end in .webp: convert them, or call timm.data.add_img_extensions('.webp')" in caplog.text
    write_images(tmp_path / 'train' / 'more', classes=2, each=1)
    assert len(open_dataset(settings_of(tmp_path).data, 'train', net)) == 9
    assert (
        "folders of one name in several places, which are one class each, such as 'class0', 'more/class0'"
        in caplog.text
    )
    table = tmp_path / 'table.txt'
    table.write_text('class0\nclass1\nclass2\ndog\n')
    assert len(open_dataset(settings_of(tmp_path, class_map=str(table)).data, 'train', net)) == 7
    assert 'lacks folders of' in caplog.text
    assert "whose images are not used: 'class3'" in caplog.text


def test_another_number_of_classes_is_refused_and_says_what_helps(net, tmp_path):
    write_images(tmp_path / 'train', classes=3, each=2)
    with pytest.raises(SnnetError, match='has 3 classes, the net 4: train.py --from fits new heads.*--num-classes 3'):
        open_dataset(settings_of(tmp_path).data, 'train', net)


def test_keyed_generators_repeat_themselves_and_leave_the_libraries_alone():
    assert key(0, 'a', 1) == key(0, 'a', 1)
    assert len({key(0, 'a', 1), key(1, 'a', 1), key(0, 'b', 1), key(0, 'a', 2)}) == 4
    assert torch.equal(torch.rand(3, generator=generator(0, 'x')), torch.rand(3, generator=generator(0, 'x')))
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with seeded_libraries(5):
        torch.rand(7)
    assert torch.equal(torch.rand(2), expected)
