"""A checkpoint without labels: a network learns which quarter turn pictures were rotated by.

    python examples/rotations.py my_images/train output/rotations.safetensors --network regnetx_002 --img-size 96

(Gidaris, Singh, Komodakis: Unsupervised Representation Learning by Predicting Image Rotations, ICLR 2018.) Folders are
searched for pictures, and what the folders are called does not matter. The file holds the network without its
classifier, as self-supervised checkpoints are published. `train.py --from regnetx_002=FILE` takes it, and so does
`reassemble.py --zoo ...,regnetx_002=FILE --num-classes 10`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

from snnet.cli.predict import find_images
from snnet.utils.log import set_up_logging
from snnet.utils.progress import Progress
from snnet.utils.read_rgb import read_rgb
from snnet.utils.seeds import generator, seeded_libraries

SEED, SHIFT = 0, 8
"""The seed of all that is drawn, and the share of a side by which crops move at most: one eighth."""


def pictures(folders: list[str], size: int) -> Tensor:
    """All pictures in the folders, cropped to a square: (N, 3, size, size) of type uint8."""
    files = find_images(folders)
    progress, read = Progress(len(files), 'pictures'), torch.empty(len(files), 3, size, size, dtype=torch.uint8)
    for number, file in enumerate(files):
        picture = resize(pil_to_tensor(read_rgb(file)), [size], antialias=True)
        read[number] = center_crop(picture, [size, size])
        progress.update(1)
    progress.close()
    return read


def turned(images: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Every image in its four quarter turns, normalized, and by how many each was turned: (4 N, 3, H, W), (4 N,)."""
    x = (images.float() / 255 - mean) / std
    turns = torch.arange(4).repeat_interleave(len(x))
    return torch.cat([x.rot90(turn, (2, 3)) for turn in range(4)]), turns


def varied(images: Tensor, epoch: int, batch: int) -> Tensor:
    """Images mirrored at random and moved by up to an eighth of their side, the same for the same epoch and batch."""
    size, draw = images.shape[-1], generator(SEED, 'vary', epoch, batch)
    by = size // SHIFT
    padded = F.pad(images.float(), (by, by, by, by), mode='reflect').to(images.dtype)
    down, right = (torch.randint(2 * by + 1, (len(images),), generator=draw).tolist() for _ in range(2))
    mirrored = torch.rand(len(images), generator=draw) < 0.5
    x = torch.stack(
        [padded[i, :, d : d + size, r : r + size] for i, (d, r) in enumerate(zip(down, right, strict=True))]
    )
    return torch.where(mirrored[:, None, None, None], x.flip(3), x)


def learn(model: nn.Module, images: Tensor, epochs: int, batch_size: int, lr: float) -> None:
    """Trains the network to tell the turns apart: AdamW, one cycle of the learning rate."""
    config = resolve_model_data_config(model)
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ('mean', 'std'))
    per_epoch = len(images) // batch_size
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * per_epoch)
    progress = Progress(epochs * per_epoch, 'steps')
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator(SEED, 'order', epoch))
        for batch, chosen in enumerate(order[: per_epoch * batch_size].split(batch_size)):
            x, turns = turned(varied(images[chosen], epoch, batch), mean, std)
            loss = F.cross_entropy(model(x), turns)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.update(1, f'loss {loss.item():.3f}')
    progress.close()


def share_right(model: nn.Module, images: Tensor) -> float:
    """Share of turns that the network recognizes."""
    config = resolve_model_data_config(model)
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ('mean', 'std'))
    right = 0
    model.eval()
    with torch.inference_mode():
        for part in images.split(32):
            x, turns = turned(part, mean, std)
            right += int((model(x).argmax(1) == turns).sum())
    return right / (4 * len(images))


def main() -> None:
    """Learns from the folders that were named, and saves the network without its classifier."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('folders', nargs='+', help='folders of pictures')
    parser.add_argument('output', type=Path, help='safetensors file to write')
    parser.add_argument('--network', default='regnetx_002', help="timm's name of the network (default: regnetx_002)")
    parser.add_argument('--img-size', type=int, default=96, help='pixels per side (default: 96)')
    parser.add_argument('--epochs', type=int, default=3, help='how often each picture is seen (default: 3)')
    parser.add_argument('--batch-size', type=int, default=16, help='pictures per step, four turns each (default: 16)')
    parser.add_argument('--lr', type=float, default=2e-3, help='highest learning rate (default: 2e-3)')
    given = parser.parse_args()
    set_up_logging()
    with seeded_libraries(SEED):
        model = timm.create_model(given.network, num_classes=4)
    images = pictures(given.folders, given.img_size)
    images = images[torch.randperm(len(images), generator=generator(SEED, 'held out'))]
    held_out = len(images) // 10
    learn(model, images[held_out:], given.epochs, given.batch_size, given.lr)
    print(f'{share_right(model, images[:held_out]):.1%} of the turns of {held_out} other pictures recognized')
    head = {id(parameter) for parameter in model.get_classifier().parameters()}
    own = {name for name, parameter in model.named_parameters() if id(parameter) in head}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: x.contiguous() for name, x in model.state_dict().items() if name not in own}, given.output)
    print(f'{given.output} holds {given.network} without its classifier')


if __name__ == '__main__':
    main()
