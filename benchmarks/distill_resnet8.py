"""A ResNet-8 for CIFAR-10, taught by the public ResNet-56 without labels: the small anchor that is not published.

    python benchmarks/distill_resnet8.py SOURCE output/resnet8.safetensors --epochs 30

SOURCE holds the networks and the sprites (see examples/cifar10_resnet.py). The teacher answers once for every training
image and once for its mirror image; the student learns from these two.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import timm
import torch
from recalibration import TEST_SPRITE, cifar_resnet, sprites  # type: ignore[import-not-found]
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

TEMPERATURE = 4.0


@torch.inference_mode()
def answers(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (n, classes)."""
    return torch.cat([model(chunk) for chunk in images.split(500)])


def main() -> None:
    """Trains, tests and saves it."""
    parser = argparse.ArgumentParser(description='Distills ResNet-56 into a ResNet-8.')
    parser.add_argument('source', type=Path)
    parser.add_argument('output', type=Path, help='file of the weights')
    parser.add_argument('--sprites', type=int, default=17, help='training images, in thousands')
    parser.add_argument('--epochs', type=int, default=30)
    parser.add_argument('--batch-size', type=int, default=128)
    parser.add_argument('--lr', type=float, default=0.2)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    images, _ = sprites(args.source, range(args.sprites))
    teacher, student = cifar_resnet(args.source, 'cifar_resnet56'), timm.create_model('cifar_resnet8')
    images = torch.cat([images, images.flip(-1)])
    taught = answers(teacher, images)
    steps = args.epochs * len(images) // 2 // args.batch_size
    optimizer = torch.optim.SGD(student.parameters(), args.lr, momentum=0.9, weight_decay=1e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps)
    begin = time.monotonic()
    student.train()
    for step in range(steps):
        chosen = torch.randint(len(images), (args.batch_size,))
        found, wanted = student(images[chosen]) / TEMPERATURE, taught[chosen] / TEMPERATURE
        loss = TEMPERATURE**2 * F.kl_div(found.log_softmax(1), wanted.softmax(1), reduction='batchmean')
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f'step {step + 1} of {steps}, loss {loss:.3f}, {time.monotonic() - begin:.0f} s', flush=True)
    test, labels = sprites(args.source, (TEST_SPRITE,))
    right = float((answers(student.eval(), test).argmax(1) == labels).double().mean())
    print(f'top-1 on {len(test)} test images: {100 * right:.1f}')
    args.output.parent.mkdir(parents=True, exist_ok=True)
    save_file(student.state_dict(), args.output)


if __name__ == '__main__':
    main()
