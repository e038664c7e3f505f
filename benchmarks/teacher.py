"""Training with stored answers of the teacher against a live teacher, on the same images and stitches in one run.

    python benchmarks/teacher.py --anchors deit_tiny,deit_small,deit_base --teacher regnety_160 --steps 8

Prints the ratio of the times, whether all losses are equal, and what answers take on disk and to read.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

import snnet
from snnet.anchors.names import resolve
from snnet.training.answer import Question
from snnet.training.answer_store import Store
from snnet.training.distillation import DistillationLoss
from snnet.training.samplers import StratifiedSampler
from snnet.training.teacher import Teacher
from snnet.training.teacher_answers import Answers

SAME = ((0.5,) * 3, (0.5,) * 3)


def train(net: snnet.StitchableNet, answers: Answers, batches: list[Tensor], tau: float) -> list[float]:
    """Losses of one step per batch, from the same weights every time."""
    start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    loss_of = DistillationLoss(nn.CrossEntropyLoss(), tau=tau)
    sampler, losses = StratifiedSampler(0, False, 1, tuple(range(len(net.stitches)))), []
    for step, images in enumerate(batches):
        optimizer.zero_grad(set_to_none=True)
        answer = answers(step, images)
        loss = loss_of(net(images, stitch=sampler(step)), torch.zeros(len(images), dtype=torch.long), answer)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    answers.flush()
    net.load_state_dict(start)
    return losses


def print_disk(folder: Path, steps: int = 256, images: int = 128, classes: int = 1000) -> None:
    """Bytes per image, and images per second read back, for every kind of answer."""
    logits, pixels = torch.randn(images, classes), torch.zeros(images, 3, 2, 2)
    for name, question in {
        'hard': Question(),
        'soft, top 16': Question('soft', 16),
        'soft, all': Question('soft'),
    }.items():
        filled = Store(folder / name, {})
        for step in range(steps):
            filled.put(step, question.answer(logits.roll(step, 1)), pixels)
        filled.flush()
        size = sum(path.stat().st_size for path in (folder / name).rglob('*.safetensors'))
        opened, begin = Store(folder / name, {}), time.perf_counter()
        for step in range(steps):
            assert opened.get(step, pixels) is not None
        rate = steps * images / (time.perf_counter() - begin)
        gigabytes = size / steps / images * 1_281_167 * 50 / 1e9
        print(
            f'{name}: {size / steps / images:.1f} bytes an image, {gigabytes:.2f} GB for 50 epochs of ImageNet, '
            f'{rate / 1e6:.1f} M images a second read and checked',
            flush=True,
        )


def main() -> None:
    """Prints times, their ratio, and the cost of a store."""
    parser = argparse.ArgumentParser(description='Stored answers of the teacher against a live teacher.')
    parser.add_argument('--anchors', default='deit_tiny,deit_small,deit_base')
    parser.add_argument('--teacher', default='regnety_160', help='built without weights')
    parser.add_argument('--distill', default='hard')
    parser.add_argument('--img-size', type=int, default=112, help='pixels per side')
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--steps', type=int, default=4)
    parser.add_argument('--pairs', type=int, default=3, help='repetitions of both ways')
    args = parser.parse_args()
    torch.manual_seed(0)
    net = snnet.create_stitchable_net(args.anchors, pretrained=False, img_size=args.img_size)
    network = timm.create_model(resolve(args.teacher).model, num_classes=net.num_classes)
    teacher, question = Teacher(network, *SAME, *SAME), Question(args.distill, 16)
    batches = [torch.randn(args.batch, *net.input_size) for _ in range(args.steps)]
    with tempfile.TemporaryDirectory() as folder:
        print_disk(Path(folder))
        place, steps = Path(folder) / 'run', range(args.steps)
        train(net, Answers(lambda: teacher, question, Store(place, {}), steps), batches, question.tau)
        ratios = []
        for pair in range(args.pairs):
            begin = time.perf_counter()
            live = train(net, Answers(lambda: teacher, question), batches, question.tau)
            middle = time.perf_counter()
            replayed = train(net, Answers(lambda: teacher, question, Store(place, {}), steps), batches, question.tau)
            end = time.perf_counter()
            ratios.append((middle - begin) / (end - middle))
            print(
                f'pair {pair}: live {args.steps / (middle - begin):.2f} steps a second, replayed '
                f'{args.steps / (end - middle):.2f}, equal losses: {live == replayed}',
                flush=True,
            )
    print(f'replaying is {statistics.median(ratios):.2f} times as fast as a live teacher')


if __name__ == '__main__':
    main()
