from __future__ import annotations

import pytest
import torch

import snnet
from tests.gpu.nets import moved, near
from tests.helpers.families import images

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize('name', ['vit', 'swin'])
def test_compiled_blocks_compile_nothing_after_the_warm_up_for_any_stitch_and_three_batch_sizes(name, device):
    torch._dynamo.reset()
    net = moved(name, device)
    ids, batches = range(len(net.stitches)), [images(net.input_size[1], n).to(device) for n in (1, 3, 8)]
    with torch.inference_mode():
        wanted = [[net(x, stitch=i) for x in batches] for i in ids]
        snnet.compile_blocks(net, 'inductor' if device.type == 'cuda' else 'eager')
        assert snnet.warm_up(net, batches[1], quiet=True) > 0
        with torch.compiler.set_stance('fail_on_recompile'):
            found = [[net(x, stitch=i) for x in batches] for i in ids]
    torch._dynamo.reset()
    assert [i for i in ids if not all(map(near, found[i], wanted[i]))] == []
