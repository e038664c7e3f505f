"""The family of the demo: small vision transformers for 8x8 images of handwritten digits.

A plugin (`--plugin examples/digits.py` registers the networks with timm) and a script that makes images and anchors:

    python examples/digits.py output/demo

writes output/demo/images/{train,validation}/{0..9}/*.png and output/demo/digits_{small,medium,large}.safetensors. The
digits come with scikit-learn (UCI's handwritten digits, 1,797 images by 43 people).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = 0.305, 0.376
EPOCHS = 50
SIZES = {'digits_small': (10, 2), 'digits_medium': (20, 2), 'digits_large': (48, 3)}
"""Width and heads."""

default_cfgs = generate_default_cfgs(
    {
        name: {
            'num_classes': 10,
            'input_size': (3, 8, 8),
            'fixed_input_size': True,
            'crop_pct': 1.0,
            'mean': (MEAN,) * 3,
            'std': (STD,) * 3,
            'first_conv': 'patch_embed.proj',
            'classifier': 'head',
        }
        for name in SIZES
    }
)


def _vit(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    width, heads = SIZES[name]
    shape = {'patch_size': 2, 'embed_dim': width, 'num_heads': heads, 'depth': 6}
    return build_model_with_cfg(VisionTransformer, name, pretrained, **shape, **kwargs)


@register_model
def digits_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Width 8."""
    return _vit('digits_small', pretrained, **kwargs)


@register_model
def digits_medium(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Width 16."""
    return _vit('digits_medium', pretrained, **kwargs)


@register_model
def digits_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Width 48."""
    return _vit('digits_large', pretrained, **kwargs)


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images (1797, 8, 8) of bytes and their digits."""
    try:
        from sklearn.datasets import load_digits as load
    except ImportError:
        sys.exit("the demo needs scikit-learn: pip install -e '.[demo]' in the folder of the clone")
    digits = load()
    return (digits.images * (255 / 16)).round().astype(np.uint8), digits.target


def write_images(images: np.ndarray, labels: np.ndarray, folder: Path) -> None:
    """One folder per digit, as timm reads them."""
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / str(label) / f'{i:04}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).convert('RGB').save(path)


def train_anchor(name: str, images: Tensor, labels: Tensor, seed: int = 0) -> nn.Module:
    """An anchor from scratch: AdamW with a cosine schedule, images shifted by up to a pixel."""
    torch.manual_seed(seed)
    model = timm.create_model(name)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.reset_parameters()  # timm's initial weights are made for wide networks and long training
    nn.init.normal_(model.pos_embed, std=0.3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.05)
    batches = len(images) // 50
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, EPOCHS * batches)
    for epoch in range(EPOCHS):
        for batch in torch.randperm(len(images))[: batches * 50].split(50):
            down, right = torch.randint(-1, 2, (2,)).tolist()
            shifted = images[batch].roll((down, right), (2, 3))
            loss = F.cross_entropy(model(shifted), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if epoch % 10 == 9:
            print(f'{name}: epoch {epoch + 1} of {EPOCHS}, loss {loss.item():.3f}', flush=True)
    return model.eval()


def main(folder: Path) -> None:
    """Writes the images and trains the three anchors."""
    images, labels = load_digits()
    train, validation = slice(0, 1000), slice(1000, None)
    write_images(images[train], labels[train], folder / 'images' / 'train')
    write_images(images[validation], labels[validation], folder / 'images' / 'validation')
    x = (torch.from_numpy(images / 255).float()[:, None].expand(-1, 3, -1, -1) - MEAN) / STD
    y = torch.from_numpy(labels)
    for name in SIZES:
        model = train_anchor(name, x[train], y[train])
        with torch.no_grad():
            right = (model(x[validation]).argmax(1) == y[validation]).float().mean()
        print(f'{name}: {100 * float(right):.1f} % of the validation images right')
        save_file(model.state_dict(), folder / f'{name}.safetensors')


if __name__ == '__main__':
    main(Path(sys.argv[1]))
