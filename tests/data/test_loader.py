from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

import snnet.data.loader
from snnet import SnnetError, create_stitchable_net
from snnet.data.batches import AugmentedPictures, Batch, Normalizer, collate
from snnet.data.datasets import open_dataset
from snnet.data.decode import Pictures
from snnet.data.loader import Loader
from snnet.data.order import Draw
from snnet.data.transforms import train_transform
from snnet.utils.distributed import Ranks
from snnet.utils.seeds import seed_cpu, seeded_libraries
from tests.helpers.runs import train_images, train_settings, write_images

CPU = torch.device('cpu')
ALONE = Ranks(0, 1, CPU)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5,) * 3  # of timm's test networks


@pytest.fixture(scope='module')
def net():
    return create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=4, img_size=32)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('images')
    write_images(path / 'train', classes=4, each=6, size=48)
    return path


def settings_of(folder, **changes):
    return train_settings(folder / 'run', data_dir=str(folder), dataset='', aa='rand-m9-mstd0.5-inc1', **changes)


def transform_of_timm(settings, net):
    config = train_transform(settings, net)
    whole = create_transform(
        (3, 32, 32), is_training=True, scale=settings.scale, ratio=settings.ratio, hflip=settings.hflip,
        color_jitter=settings.color_jitter, auto_augment=settings.aa, interpolation=settings.train_interpolation,
        mean=HALF, std=HALF, re_prob=settings.reprob, re_mode=settings.remode,
    )  # fmt: skip
    whole.transforms[2] = config.transforms[2]  # RandAugment without posterizing to 0 bits
    return whole


def same(one, other):
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True))


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('remode', ['pixel', 'rand', 'const'])
def test_uint8_from_the_processes_ends_as_the_very_floats_of_timms_own_transform(net, folder, workers, remode):
    settings = settings_of(folder, workers=workers, reprob=0.5, remode=remode, aug_repeats=3)
    images = train_images(settings, net, ALONE)
    dataset = open_dataset(settings.data, 'train', net)
    dataset.transform = transform_of_timm(settings.augmentation, net)
    for draws, (x, y) in zip(images._draws.batches(0), images.epoch(0), strict=True):
        for draw, image, target in zip(draws, x, y, strict=True):
            with seeded_libraries(draw.key):
                expected, label = dataset[draw.image]
            assert torch.equal(image, expected)
            assert label == target
    assert x.dtype == torch.float32
    assert x.is_contiguous()


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_every_level_of_every_channel_is_normalized_to_the_last_bit(device):
    if device == 'cuda' and not torch.cuda.is_available():
        pytest.skip('no GPU')
    levels = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([levels.numpy()] * 3, axis=-1))
    for mean, std in (
        (MEAN, STD),
        ((0.5,) * 3, (0.5,) * 3),
        ((0.0,) * 3, (1.0,) * 3),
        ((0.123, 0.9, 0.3), (0.33,) * 3),
    ):
        steps = create_transform(
            (3, 16, 16), no_aug=True, is_training=True, mean=mean, std=std, interpolation='nearest'
        )
        batch = Batch(levels.expand(2, 3, 16, 16), torch.zeros(2), [], torch.empty(0), [], False)
        ours, _ = Normalizer(mean, std, torch.device(device))(batch)
        assert torch.equal(ours[1].cpu(), steps(image))


class Decodes:
    """Pictures that count how often one is decoded."""

    def __init__(self, count):
        self.count, self.read_ones = count, []

    def __len__(self):
        return self.count

    def read(self, index):
        self.read_ones.append(index)
        return Image.new('RGB', (8, 8), (index, 0, 0)), index


def pixels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_an_image_that_is_drawn_several_times_in_a_row_is_decoded_once():
    pictures = Decodes(5)
    source = AugmentedPictures(pictures, pixels)
    targets = [source[Draw(image, key)][1] for key, image in enumerate([3, 3, 3, 1, 1, 3])]
    assert targets == [3, 3, 3, 1, 1, 3]
    assert pictures.read_ones == [3, 1, 3]


def test_a_batch_holds_the_fillings_of_its_own_images():
    def erase_top_left(canvas):
        canvas[:, 0:2, 1:4] = torch.randn(3, 2, 3)

    items = [AugmentedPictures(Decodes(9), pixels, erase_top_left)[Draw(i, i)] for i in range(3)]
    images, targets = Normalizer((0.0,) * 3, (1.0,) * 3, CPU)(collate(items))
    for i in range(3):
        seed_cpu(i)
        assert torch.equal(images[i, :, 0:2, 1:4], torch.randn(3, 2, 3))
        assert images[i, 0, 2:].unique().item() == torch.tensor(i / 255).item()
    assert targets.tolist() == [0, 1, 2]


class Slow:
    """Waits at one image for as long as its file exists."""

    def __init__(self, obstacle):
        self.obstacle = obstacle

    def __call__(self, image):
        while image.getpixel((0, 0))[0] == 9 and self.obstacle.exists():
            time.sleep(0.02)
        return pixels(image)


def pass_of(loader, first=0):
    return loader.batches(lambda first: iter([[Draw(i, i), Draw(i + 1, i)] for i in range(2 * first, 20, 2)]), first)


def loader_of(tmp_path, workers=2):
    source = AugmentedPictures(Decodes(20), Slow(tmp_path / 'obstacle'))
    return Loader(source, Normalizer((0.0,) * 3, (1.0,) * 3, CPU), workers, lambda *bad: None)


def children():
    task = f'/proc/self/task/{threading.get_native_id()}/children'
    with open(task, encoding='ascii') as file:
        return [pid for pid in file.read().split() if b'python' in cmdline(pid)]


def cmdline(pid):
    with open(f'/proc/{pid}/cmdline', 'rb') as file:
        return file.read()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(snnet.data.loader, '_POLL_SECONDS', 0.2)


needs_proc = pytest.mark.skipif(not os.path.exists('/proc/self/task'), reason='finds processes in /proc')


@needs_proc
def test_a_killed_process_costs_no_batch_and_no_bit(tmp_path, quick, caplog):
    expected = list(pass_of(loader_of(tmp_path, workers=0)))
    loader = loader_of(tmp_path)
    before = set(children())
    (tmp_path / 'obstacle').touch()
    batches = pass_of(loader)
    got = [next(batches) for _ in range(4)]
    started = set(children()) - before
    assert len(started) == 2
    for pid in started:
        os.kill(int(pid), signal.SIGKILL)
    (tmp_path / 'obstacle').unlink()
    time.sleep(0.1)  # nothing is raised here, in the midst of other work
    got += batches
    assert same(got, expected)
    assert [r.message for r in caplog.records if r.levelname == 'WARNING'] == [
        'a process that loads images was killed; continuing at batch 4 with new ones'
    ]
    assert same(pass_of(loader), expected), 'and the next pass is whole'


class Deadly:
    def __call__(self, image):
        os.kill(os.getpid(), signal.SIGKILL)


def test_processes_that_are_killed_each_time_end_in_a_sentence(quick):
    loader = Loader(AugmentedPictures(Decodes(20), Deadly()), Normalizer(MEAN, STD, CPU), 1, lambda *bad: None)
    with pytest.raises(SnnetError, match=r'killed again and again.*memory.*lower --workers \(1\)') as error:
        list(pass_of(loader))
    assert '\n' not in str(error.value)


@needs_proc
def test_a_stuck_process_is_given_up_and_leaves_nothing_behind(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(snnet.data.loader, 'STUCK_SECONDS', 0.5)
    (tmp_path / 'obstacle').touch()
    before = set(children())
    batches = pass_of(loader_of(tmp_path))
    with pytest.raises(SnnetError, match='gave nothing for 1 s'):
        list(batches)
    del batches
    deadline = time.monotonic() + 10
    while set(children()) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(children()) == before


def test_a_slow_image_is_waited_for(tmp_path, quick, monkeypatch):
    (tmp_path / 'obstacle').touch()
    said = threading.Event()

    def unblock():  # not after a fixed time, in which a busy machine may not even have started the processes
        said.wait(60)
        (tmp_path / 'obstacle').unlink()

    monkeypatch.setattr('snnet.data.loader._log.info', lambda message, *args: said.set())
    threading.Thread(target=unblock).start()
    assert len(list(pass_of(loader_of(tmp_path)))) == 10
    assert said.is_set()


@needs_proc
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_the_whole_group_does_not_reach_the_processes(tmp_path, quick, caplog, number):
    before = set(children())
    batches = pass_of(loader_of(tmp_path))
    got = [next(batches), next(batches)]  # one of each process
    for pid in set(children()) - before:
        os.kill(int(pid), number)
    got += batches
    assert len(got) == 10
    assert caplog.records == []


def test_a_pass_that_was_broken_off_does_not_mix_with_the_next(tmp_path):
    loader = loader_of(tmp_path)
    expected = list(pass_of(loader_of(tmp_path, workers=0)))
    first = pass_of(loader)
    next(first)
    assert same(pass_of(loader, first=3), expected[3:])
    assert same(pass_of(loader), expected)


@needs_proc
@pytest.mark.parametrize('ending', ['error', 'stop'])
def test_processes_end_with_a_pass_that_does_not_end_well(tmp_path, ending):
    before = set(children())
    transform = Wrong() if ending == 'error' else pixels
    loader = Loader(AugmentedPictures(Decodes(20), transform), Normalizer(MEAN, STD, CPU), 2, lambda *bad: None)
    batches = pass_of(loader)
    try:
        next(batches)
    except OSError as error:
        kept = error  # and with it the frames that hold torch's iterator
        assert kept.__traceback__ is not None
    assert ending == 'error' or set(children()) != before
    batches.close()
    assert set(children()) == before


@needs_proc
def test_processes_are_kept_from_pass_to_pass(tmp_path):
    loader = loader_of(tmp_path)
    before = set(children())
    seen = []
    for _ in range(2):
        batches = pass_of(loader)
        next(batches)
        seen.append(set(children()) - before)
        list(batches)
    assert seen[0] == seen[1]
    assert len(seen[0]) == 2


class Wrong:
    def __call__(self, image):
        raise OSError('a bug')


@pytest.mark.parametrize('workers', [0, 1])
def test_an_error_in_a_transform_is_no_killed_process_and_no_bad_image(workers):
    loader = Loader(AugmentedPictures(Decodes(20), Wrong()), Normalizer(MEAN, STD, CPU), workers, lambda *bad: None)
    with pytest.raises(OSError, match='a bug'):
        list(pass_of(loader))


def test_loading_leaves_the_generators_of_torch_alone(net, folder):
    images = train_images(settings_of(folder), net, ALONE)
    before = torch.get_rng_state()
    list(images.epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_pictures_of_torchvision_data_sets_are_read_too(net):
    settings = train_settings('unused', dataset='generated/4')
    image, target = Pictures(open_dataset(settings.data, 'train', net)).read(2)
    assert (image.mode, image.size, 0 <= target < 4) == ('RGB', (32, 32), True)
