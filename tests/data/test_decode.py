from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_dataset
from torch import distributed as dist

from snnet import SnnetError, create_stitchable_net
from snnet.data.datasets import open_dataset
from snnet.data.decode import Pictures
from snnet.data.quarantine import Quarantine
from snnet.data.unaugmented_images import clean_loader, initialization_images
from snnet.utils.distributed import Ranks
from snnet.utils.read_rgb import Unreadable, read_rgb
from tests.helpers.runs import train_images, train_settings, write_images

CPU = torch.device('cpu')
ALONE = Ranks(0, 1, CPU)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def huge_png(width, height):
    """A small file that claims to be a large image."""

    def chunk(name, content):
        return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))

    head = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + head + chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b'')


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
TRANSPARENT = NOISE.copy()
TRANSPARENT.putalpha(NOISE.convert('L'))
ROTATED = Image.Exif()
ROTATED[0x0112] = 6
ODD = {
    'cmyk.jpg': encoded(NOISE.convert('CMYK'), 'JPEG'),
    'grey.jpg': encoded(NOISE.convert('L'), 'JPEG'),
    'two_levels.png': encoded(NOISE.convert('1'), 'PNG'),
    'palette.png': encoded(NOISE.convert('P'), 'PNG', transparency=bytes(range(200))),
    'alpha.png': encoded(TRANSPARENT, 'PNG'),
    'grey_alpha.png': encoded(TRANSPARENT.convert('LA'), 'PNG'),
    'rotated.jpg': encoded(NOISE, 'JPEG', exif=ROTATED),
    'named_otherwise.jpg': encoded(NOISE, 'PNG'),
    'broken_exif.jpg': encoded(NOISE, 'JPEG', exif=b'Exif\0\0II*\0\x08\0\0\0\xff\xff'),
}
WHOLE = encoded(NOISE, 'JPEG')
BAD = {
    'empty.jpg': (b'', 'no image in a format that Pillow knows'),
    'text.jpg': (b'not an image', 'no image in a format that Pillow knows'),
    'truncated.jpg': (WHOLE[: len(WHOLE) // 2], 'truncated'),
    'truncated.png': (encoded(NOISE, 'PNG')[:400], 'truncated'),
    'garbled.png': (encoded(NOISE, 'PNG').replace(b'IDAT', b'IDAX'), '.'),
    'bomb.png': (huge_png(30_000, 30_000), 'more than 178956970 pixels'),
    'unscaled.jpg': (encoded(Image.fromarray(np.ones((4, 4), dtype=np.float32)), 'TIFF'), "mode 'F' have no known"),
}


def picture_of(folder, name, content):
    path = folder / 'class0' / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return Pictures(create_dataset('', root=str(folder), split='train'))


@pytest.mark.parametrize('name', ODD)
def test_every_kind_of_image_becomes_the_rgb_that_timm_makes_of_it_without_a_warning(tmp_path, name):
    pictures = picture_of(tmp_path, name, ODD[name])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        expected, _ = pictures.dataset[0]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        image, target = pictures.read(0)
    assert (image.mode, image.size, target) == ('RGB', (60, 40), 0)
    assert np.array_equal(np.asarray(image), np.asarray(expected))
    assert [str(x.message) for x in said if 'EXIF' not in str(x.message)] == []


def test_sixteen_bits_of_grey_are_scaled_and_not_cut_off(tmp_path):
    grey = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    image, _ = picture_of(tmp_path, 'deep.png', encoded(Image.fromarray(grey), 'PNG')).read(0)
    assert np.array_equal(np.asarray(image)[..., 0].ravel(), np.arange(256))


@pytest.mark.parametrize('name', BAD)
def test_what_cannot_be_read_is_told_in_words_that_are_the_same_each_time(tmp_path, name):
    content, reason = BAD[name]
    pictures = picture_of(tmp_path, name, content)
    said = set()
    for _ in range(2):
        with pytest.raises(Unreadable, match=reason) as error:
            pictures.read(0)
        said.add(str(error.value))
    assert len(said) == 1
    assert not any(part in min(said) for part in ('\n', ' at 0x', str(tmp_path)))
    assert pictures.path(0) == str(tmp_path / 'class0' / name)


def test_a_missing_file_is_unreadable_and_a_lack_of_memory_is_no_fault_of_the_image(tmp_path, monkeypatch):
    pictures = picture_of(tmp_path, 'a.jpg', WHOLE)
    (tmp_path / 'class0' / 'a.jpg').unlink()
    with pytest.raises(Unreadable, match='No such file'):
        pictures.read(0)

    def no_memory(index):
        raise MemoryError

    monkeypatch.setattr(type(pictures.dataset.reader), '__getitem__', lambda reader, index: no_memory(index))
    with pytest.raises(MemoryError):
        pictures.read(0)


@pytest.fixture(scope='module')
def net():
    return create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=4, img_size=32)


@pytest.fixture
def folder(tmp_path):
    """24 images, of which two cannot be read."""
    write_images(tmp_path / 'train', classes=4, each=6)
    (tmp_path / 'train' / 'class1' / '2.png').write_bytes(b'')
    whole = (tmp_path / 'train' / 'class3' / '5.png').read_bytes()
    (tmp_path / 'train' / 'class3' / '5.png').write_bytes(whole[: len(whole) // 2])
    return tmp_path


def settings_of(folder, **changes):
    changes = {'data_dir': str(folder), 'dataset': '', 'aa': 'rand-m9-mstd0.5-inc1', 'max_bad_images': 0.1, **changes}
    return train_settings(folder / 'run', **changes)


def epoch_of(settings, net, ranks=ALONE, epoch=0):
    images = train_images(settings, net, ranks)
    return images, list(images.epoch(epoch))


@pytest.mark.parametrize('repeats', [0, 3])
def test_bad_images_are_replaced_alike_whatever_the_number_of_processes(net, folder, repeats, caplog):
    outcomes = []
    for workers in (0, 2):
        (folder / 'run').mkdir()
        images, batches = epoch_of(settings_of(folder, workers=workers, aug_repeats=repeats, seed=6), net)
        images.quarantine.settle()
        lines = (folder / 'run' / 'quarantine.jsonl').read_text()
        shutil.rmtree(folder / 'run')
        outcomes.append((batches, list(images.quarantine.bad.items()), lines))
    (alone, bad, lines), (shared, *others) = outcomes
    assert [bad, lines] == others
    assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(alone, shared, strict=True))
    assert [tuple(x.shape) for x, _ in alone] == [(4, 3, 32, 32)] * 6
    assert sorted(dict(bad)) == [8, 23]
    assert [json.loads(line)['index'] for line in lines.splitlines()] == list(dict(bad))
    assert len([r for r in caplog.records if 'cannot be read' in r.message]) == 2 * len(bad), 'once a file and run'


def test_the_images_around_a_bad_one_stay_as_they_are(net, folder):
    _, with_bad = epoch_of(settings_of(folder), net)
    draws = [draw.image for batch in train_images(settings_of(folder), net, ALONE)._draws.batches(0) for draw in batch]
    write_images(folder / 'train', classes=4, each=6)
    _, without = epoch_of(settings_of(folder), net)
    changed = [
        index
        for index, a, b in zip(
            draws, torch.cat([x for x, _ in with_bad]), torch.cat([x for x, _ in without]), strict=True
        )
        if not torch.equal(a, b)
    ]
    assert sorted(changed) == [8, 23]


def test_a_run_that_is_taken_up_again_knows_its_quarantine_and_warns_no_more(net, folder, caplog):
    (folder / 'run').mkdir()
    images, _ = epoch_of(settings_of(folder), net)
    images.quarantine.settle()
    before = (folder / 'run' / 'quarantine.jsonl').read_bytes()
    caplog.clear()
    again, _ = epoch_of(settings_of(folder), net)
    assert again.quarantine.unsettled == 0
    assert again.quarantine.bad == images.quarantine.bad
    again.quarantine.settle()
    assert (folder / 'run' / 'quarantine.jsonl').read_bytes() == before
    assert caplog.records == []


@pytest.mark.parametrize(('share', 'limit'), [(0.001, 1), (0.0, 0), (0.05, 1)])
def test_more_bad_images_than_may_be_end_in_a_sentence_with_paths(net, folder, share, limit):
    (folder / 'run').mkdir()
    images, _ = epoch_of(settings_of(folder, max_bad_images=share), net)
    with pytest.raises(SnnetError, match=rf'2 of 24 .*, and {limit} may be .*class1/2.png.*Pillow') as error:
        images.quarantine.settle()
    assert '\n' not in str(error.value)
    assert len((folder / 'run' / 'quarantine.jsonl').read_text().splitlines()) == 2
    with pytest.raises(SnnetError, match='2 of 24'):
        train_images(settings_of(folder, max_bad_images=share), net, ALONE)
    write_images(folder / 'train', classes=4, each=6)
    assert train_images(settings_of(folder, max_bad_images=share), net, ALONE).quarantine.bad == {}, 'once repaired'


@pytest.mark.parametrize('share', [-0.1, 1.5, float('nan')])
def test_a_share_of_bad_images_is_between_nothing_and_all(net, folder, share):
    with pytest.raises(SnnetError, match='max_bad_images is a share from 0 to 1'):
        train_images(settings_of(folder, max_bad_images=share), net, ALONE)


def test_where_no_image_can_be_read_training_says_so(net, folder):
    for path in (folder / 'train').rglob('*.png'):
        path.write_bytes(b'')
    with pytest.raises(SnnetError, match="png' cannot be read .*, nor can the images tried in its place"):
        epoch_of(settings_of(folder), net)


@pytest.mark.parametrize('workers', [0, 2])
def test_evaluation_refuses_an_image_that_cannot_be_read(net, folder, workers):
    settings = settings_of(folder, workers=workers)
    dataset = open_dataset(settings.data, 'train', net)
    with pytest.raises(SnnetError, match=r"class1/2.png' cannot be read \(no image.*\): repair or remove it"):
        list(clean_loader(settings.data, dataset, net, range(24), 4))
    assert sum(len(x) for x, _ in clean_loader(settings.data, dataset, net, range(8), 4)) == 8


def test_initialization_puts_another_image_in_the_place_of_a_bad_one(net, folder, caplog):
    batches, count = initialization_images(settings_of(folder).data, net, ALONE, 24, 0)
    assert sum(len(x) for x, _ in batches) == count == 24
    assert len([record for record in caplog.records if 'cannot be read' in record.message]) == 2


def a_rank(rank, folder, net, results):
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    images, batches = epoch_of(settings_of(folder, max_bad_images=0.05), net, Ranks(rank, 2, CPU))
    found = images.quarantine.unsettled
    try:
        images.quarantine.settle()
        said = ''
    except SnnetError as error:
        said = str(error)
    results.put((rank, found, list(images.quarantine.bad), said, len(batches)))
    dist.destroy_process_group()


def test_ranks_agree_on_the_quarantine_and_on_its_end(net, folder):
    context = multiprocessing.get_context('fork')
    results = context.Queue()
    (folder / 'run').mkdir()
    processes = [context.Process(target=a_rank, args=(rank, folder, net, results)) for rank in range(2)]
    for process in processes:
        process.start()
    (_, found, bad, said, count), (_, other_found, other_bad, other_said, other_count) = sorted(
        results.get(timeout=60) for _ in processes
    )
    for process in processes:
        process.join()
    assert found + other_found == 2
    assert (sorted(bad), count) == ([8, 23], 3)
    assert (bad, said, count) == (other_bad, other_said, other_count)
    assert '2 of 24' in said
    lines = (folder / 'run' / 'quarantine.jsonl').read_text().splitlines()
    assert [json.loads(line)['index'] for line in lines] == bad


def test_paths_of_any_characters_are_read_and_recorded(net, tmp_path):
    write_images(tmp_path / 'train', classes=4, each=2)
    odd = [b'a b\xff.png', 'Gr\u00fc\u00dfe \u732b.png'.encode(), b'line\nbreak.png']
    for name in odd:
        with open(os.path.join(os.fsencode(tmp_path / 'train' / 'class0'), name), 'wb') as file:
            file.write(b'')
    dataset = open_dataset(settings_of(tmp_path).data, 'train', net)
    quarantine = Quarantine(Pictures(dataset), 0.9, ALONE, tmp_path / 'quarantine.jsonl')
    empty = [index for index, (path, _) in enumerate(dataset.reader.samples) if os.path.getsize(path) == 0]
    for index in empty:
        quarantine.add(index, 'no image in a format that Pillow knows')
    quarantine.settle()
    lines = (tmp_path / 'quarantine.jsonl').read_text(encoding='ascii').splitlines()
    assert len(lines) == 3
    assert Quarantine(Pictures(dataset), 0.9, ALONE, tmp_path / 'quarantine.jsonl').bad == quarantine.bad
    assert {os.fsencode(os.path.basename(json.loads(line)['path'])) for line in lines} == set(odd)


def test_a_pipe_among_images_is_unreadable_instead_of_a_wait_without_end(tmp_path):
    write_images(tmp_path, classes=1, each=2)
    pipe = tmp_path / 'class0' / 'pipe.png'
    os.mkfifo(pipe)
    pictures = Pictures(create_dataset('', root=str(tmp_path)))
    index = next(i for i in range(len(pictures)) if pictures.path(i) == str(pipe))
    for read in (lambda: pictures.read(index), lambda: read_rgb(pipe)):
        with pytest.raises(Unreadable, match='not a regular file'):
            read()
