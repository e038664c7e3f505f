from __future__ import annotations

import copy

import pytest
import torch

import snnet
from snnet.profiling.memory import peak_memory
from snnet.profiling.profile import profile
from tests.gpu.nets import moved
from tests.helpers.families import images, shared_net

pytestmark = pytest.mark.gpu


def test_a_profile_names_the_device_and_chooses_by_its_milliseconds(device):
    net = moved('vit', device)
    (table,) = profile(net, batches=[2], stitches=[0, 1, 4], predict=False, minutes=0.1, quiet=True)
    assert table.setup.device == device.type
    assert set(table.rows) == {0, 1, 4}
    assert all(0 < row.low <= row.ms <= row.high and row.memory > 0 for row in table.rows.values())
    slowest = max(row.ms for row in table.rows.values())
    assert net.choose(latency_ms=slowest, batch=2).record.stitch in (0, 1, 4)


def test_the_peak_memory_of_a_call_grows_with_the_batch_and_holds_its_result(device, true_memory):
    net = moved('vit', device)

    @torch.inference_mode()
    def peak(count):
        x = images(32, count).to(device)
        net(x, stitch=1)
        return peak_memory(lambda: net(x, stitch=1), device)

    small, large = peak(2), peak(64)
    assert large > small >= 2 * net.num_classes * 4
    assert large < 64 * small


@pytest.mark.parametrize('name', ['vit', 'resnet', 'levit'])
def test_least_squares_on_the_device_fits_as_well_as_on_the_cpu(name, device):
    batch = images(shared_net(name).input_size[1], 64)
    there, here = moved(name, device), copy.deepcopy(shared_net(name))
    found, wanted = (snnet.initialize(net, [batch], samples=64) for net in (there, here))
    for one, other in zip(found, wanted, strict=True):
        assert (one.layer, one.rows) == (other.layer, other.rows)
        # the sums are float64, the features float32
        assert one.residual == pytest.approx(other.residual, abs=1e-4)


def test_statistics_of_batch_norms_are_recalibrated_on_the_device_as_on_the_cpu(device):
    x = images(64, 16)
    there, here = moved('resnet', device), copy.deepcopy(shared_net('resnet'))
    for net in (there, here):
        snnet.recalibrate(net, [x], samples=16, shares=[1.0])
    with torch.inference_mode():
        for i in range(len(here.stitches)):
            torch.testing.assert_close(there(x.to(device), stitch=i).cpu(), here(x, stitch=i), rtol=1e-3, atol=1e-3)
