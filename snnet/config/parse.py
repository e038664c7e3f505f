"""Typed settings of the scripts: defaults, then a YAML file, then the command line; unknown keys are refused."""

from __future__ import annotations

import argparse
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from ..errors import SnnetError, did_you_mean

Settings = TypeVar('Settings')


def option(default: Any, text: str, free: bool = False) -> Any:
    """A setting with its help text; a free one may change between the parts of a run, for it decides no result."""
    metadata = {'help': text, 'free': free}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ImageSettings:
    """Where images come from and how they are read."""

    data_dir: str = option('', 'folder with one folder of images a class in each split', free=True)
    dataset: str = option('', "timm's name of a data set (default: the folder); 'generated/N' makes N random images")
    class_map: str = option('', 'file that maps class names to indices')
    batch_size: int = option(128, 'images a step and process')
    workers: int = option(4, 'processes that load images', free=True)
    device: str = option('', 'cpu or cuda (default: a GPU where there is one)', free=True)
    plugin: list[str] = option([], 'Python files that register networks and adapters', free=True)


@dataclass
class DataSettings(ImageSettings):
    """Images, and how a net runs on them."""

    amp: bool = option(False, 'mixed precision')
    amp_dtype: str = option('bfloat16', 'type of mixed precision: bfloat16 or float16')
    compile: bool = option(False, 'compile the blocks with torch.compile: a minute or more at the start, then faster')


@dataclass
class TrainSettings(DataSettings):
    """Settings of train.py; names and meanings are timm's wherever timm has them."""

    anchors: str = option('', 'networks to stitch, separated by commas: NAME or NAME=FILE')
    output: str = option('output/train', 'folder for checkpoints, logs and the net', free=True)
    resume: bool = option(True, 'continue the run in the output folder, if it holds one', free=True)
    seed: int = option(0, 'of every random choice')
    data_seed: int | None = option(None, 'of order, augmentation and mixup (default: the seed)')
    # the net
    pretrained: bool = option(True, 'load weights (NAME=FILE always does)')
    num_classes: int | None = option(None, 'classes (default: those of the weights)')
    img_size: int | None = option(None, 'pixels a side (default: those of the weights)')
    window: int = option(2, 'width of the sliding window over equally deep stages')
    step: int = option(1, 'advance of the sliding window')
    nearest: bool = option(True, 'stitch only anchors next to each other in cost')
    direction: str = option('fast_to_slow', 'fast_to_slow, slow_to_fast or two_way')
    init: str = option('joint', 'stitch layers: joint or mean (least squares), or kaiming')
    init_ridge: float = option(0.0, 'least squares: ridge, as a share of the variance of a channel')
    stitch_rank: int = option(0, "rank of the update trained in place of a stitch layer's weight (0: the weight)")
    init_samples: int = option(100, 'images for least squares')
    freeze_anchors: bool = option(False, 'train stitch layers only; of a reassembled network seams, head, new stem')
    sampler: str = option('uniform', 'what draws stitches: uniform, stratified, flops, log_flops, anchors or sandwich')
    sampler_width: float = option(0.05, 'width of a bin of (log) FLOPs, as a share of the span of all stitches')
    sampler_anchors: float = option(0.3, 'probability of an anchor, with the sampler of that name')
    stitches_per_step: int = option(1, 'stitches trained on each batch')
    stitch_per_rank: bool = option(False, 'let every process train a stitch of its own (the slowest sets the pace)')
    protect_anchors: float = option(0.0, "weight of an anchor's own original as its teacher")
    drop_path: float | None = option(None, 'rate of stochastic depth')
    # teacher
    teacher: str = option('regnety_160', "NAME or NAME=FILE, 'largest' for the largest anchor, 'none'")
    distill: str = option('hard', 'hard or soft')
    distill_alpha: float = option(0.5, 'weight of the teacher')
    distill_tau: float = option(1.0, 'temperature of soft distillation')
    distill_topk: int = option(16, 'classes that a soft answer of the teacher tells apart; 0 for all')
    teacher_store: str = option('', "folder for the teacher's answers, which later epochs and runs replay", free=True)
    teacher_epochs: int | None = option(None, 'repeat the augmentations after so many epochs (default: never)')
    # optimizer and schedule
    opt: str = option('adamw', 'optimizer')
    lr: float = option(1e-4, 'learning rate')
    stitch_lr: float | None = option(None, 'learning rate of the stitch layers (default: the same)')
    weight_decay: float = option(0.05, 'weight decay')
    momentum: float = option(0.9, 'momentum of optimizers that have it')
    clip_grad: float | None = option(None, 'clip gradients at this value')
    clip_mode: str = option('norm', 'norm, value or agc')
    sched: str = option('cosine', 'schedule of the learning rate')
    epochs: int = option(50, 'passes over the data; 0 initializes only')
    warmup_epochs: int = option(5, 'epochs until the full learning rate')
    warmup_lr: float = option(1e-7, 'learning rate at the start')
    min_lr: float = option(1e-6, 'learning rate at the end')
    # branches that grow and fold away (DyRep)
    grow_every: int | None = option(None, 'steps from one growth of branches to the next (default: none grow)')
    grow_score: str = option('snip', 'what branches grow by: snip, grad_norm, synflow, vote or random')
    grow_cut: str = option('published', "which branches go: by the 'published' rule, below a number, or 'none'")
    grow_budget: float | None = option(
        None, 'most multiply-adds an image of the growing net: grow all that fits (default: the best, each time)'
    )
    grow_kinds: list[str] = option([], 'kinds of branches (default: all that fit)')
    grow_where: list[str] = option([], 'modules to grow, or what holds them (default: stitch layers, k x k kernels)')
    grow_static: bool = option(False, 'branches everywhere from the start instead, to compare with')
    # data and augmentation
    max_bad_images: float = option(0.001, 'share of the training images that may be unreadable', free=True)
    train_split: str = option('train', 'name of the training split')
    scale: tuple[float, float] = option((0.08, 1.0), 'area of random crops')
    ratio: tuple[float, float] = option((3 / 4, 4 / 3), 'aspect ratio of random crops')
    hflip: float = option(0.5, 'probability of a horizontal flip')
    color_jitter: float = option(0.4, 'strength of color jitter (unused with --aa)')
    aa: str = option('', 'AutoAugment policy, such as rand-m9-mstd0.5-inc1')
    train_interpolation: str = option('bicubic', 'interpolation of random crops')
    reprob: float = option(0.0, 'probability of random erasing')
    remode: str = option('pixel', 'filling of random erasing')
    aug_repeats: int = option(0, 'versions of an image in one epoch (repeated augmentation)')
    mixup: float = option(0.0, 'alpha of mixup')
    cutmix: float = option(0.0, 'alpha of cutmix')
    mixup_prob: float = option(1.0, 'probability of mixup or cutmix')
    mixup_switch_prob: float = option(0.5, 'probability of cutmix where both are on')
    smoothing: float = option(0.1, 'label smoothing')
    recalibrate: int = option(1000, 'training images for BatchNorm statistics of every stitch, at the end; 0 for none')
    # how a step is computed
    grad_accum_steps: int = option(1, 'batches an update')
    unused_grads: str = option('none', "gradients of weights that take no part: 'none', or 'zero' as published")
    channels_last: bool = option(False, 'keep images and convolutions channel by channel in memory')
    fused: bool = option(False, "torch's fused optimizer, where --opt has one")
    grad_checkpointing: bool = option(False, 'recompute blocks in the backward pass: less memory, more time')
    model_ema: bool = option(False, 'keep a moving average of the weights, and save it as the net')
    model_ema_decay: float = option(0.9998, 'decay of the moving average')
    # a run that one can leave alone
    checkpoint_steps: int | None = option(None, 'steps between checkpoints (default: by time alone)', free=True)
    checkpoint_minutes: float | None = option(5.0, 'minutes between checkpoints', free=True)
    checkpoint_keep: int = option(2, 'newest checkpoints to keep; the best stays, too', free=True)
    max_skips: int = option(10, 'updates in a row that may be left out for gradients that are not finite')
    check_steps: int = option(500, 'steps between comparisons of the ranks, bit by bit', free=True)
    timeout: float = option(1800.0, 'seconds without a step or a word of the other ranks that end a run', free=True)
    log_interval: int = option(50, 'steps between log lines', free=True)

    @property
    def seed_of_data(self) -> int:
        """What order, augmentation and mixup are keyed by."""
        return self.seed if self.data_seed is None else self.data_seed


@dataclass
class EvalSettings(DataSettings):
    """Settings of eval_stitches.py."""

    net: str = option('', 'folder of a saved net, or its id on the hub: OWNER/NAME or OWNER/NAME@REVISION')
    output: str = option(
        '', 'folder for results (default: evaluation, in the folder of the net; output/evaluation/OWNER/NAME)'
    )
    overwrite: bool = option(False, 'discard results in the output folder instead of resuming')
    val_split: str = option('validation', 'name of the split to evaluate')
    stitches: str = option('', "ids to evaluate, such as '0-2,24' (default: all)")
    images: int | None = option(None, 'evaluate so many images, evenly spread (default: all)')
    recalibrate: int = option(
        0,
        'training images for BatchNorm statistics of every stitch, kept in the folder of the net; 0 keeps what it has',
    )
    train_split: str = option('train', 'name of the split to recalibrate with')
    suffix_batch: int | None = option(
        None, 'most images in a batch of several stitches with the same end; 0 merges none (default: 512 on a GPU, 0)'
    )


@dataclass
class ReassembleSettings(ImageSettings):
    """Settings of reassemble.py."""

    zoo: str = option('', 'networks to take blocks from, separated by commas: NAME, NAME=FILE or FOLDER')
    output: str = option('output/reassemble', 'folder for the net, the list of assemblies and pictures')
    seed: int = option(0, 'of every random choice')
    pretrained: bool = option(True, 'load weights (NAME=FILE always does)')
    img_size: int | None = option(None, 'pixels a side (default: those of the weights, if all agree)')
    flops: float | None = option(None, 'budget: multiply-adds an image at most')
    params: float | None = option(None, 'budget: parameters at most')
    # similarity
    split: str = option('train', 'name of the split whose images are used; classes do not matter')
    images: int = option(512, 'images for the similarity')
    batch_size: int = option(64, 'images that are compared with each other')
    pool: bool = option(False, 'compare means over the grid in place of all features')
    estimator: str = option('unbiased', 'of HSIC: unbiased or published')
    # partition
    blocks: int = option(4, 'K, blocks of each network')
    epsilon: float = option(0.2, 'how much larger than the K-th part of its network a block may nearly be')
    size: str = option('flops', 'what the size of a block is measured in: flops, nodes or params')
    sets: str = option('stage', "equivalence sets: 'stage' (block k of each network in set k) or 'free'")
    method: str = option('alternating', 'alternating, or published for the algorithm of the paper')
    # assemblies
    networks: int = option(2, 'networks that an assembly takes blocks from, at least')
    count: int = option(10, 'assemblies to list')
    rank: str = option('similarity', 'what the list is ranked by: similarity, or naswot or naswot_plain of its best')
    stem: str = option('own', "'own' (of the first block's network) or 'new'")
    head: str = option('auto', "'own' (of the last block's network), 'new', or 'auto': its own where that is possible")
    seams: str = option('plain', "stitch layers: 'plain' (map) or 'published' (norm, map, LeakyReLU)")
    resample: bool = option(True, 'give every block the grid that it has in its own network')
    init_samples: int = option(100, 'images for least squares')
    init_ridge: float = option(0.0, 'least squares: ridge, as a share of the variance of a channel')


def parse(
    kind: type[Settings],
    argv: Sequence[str] | None = None,
    positional: str = '',
    recipes: Mapping[str, dict[str, Any]] | None = None,
    prog: str | None = None,
) -> Settings:
    """Settings from the defaults, then the file named by --config, then the command line, each after its recipe.

    Args:
        kind: dataclass of settings.
        argv: arguments; those of the process by default.
        positional: name of the setting that is given without a flag.
        recipes: settings by the name that --recipe, or `recipe` in the file, chooses them by.
        prog: what help and usage call the program; its file's name by default.

    Raises:
        SnnetError: the file is missing, no YAML, or has an unknown key or a value of a wrong type; an unknown recipe.
    """
    parser = argparse.ArgumentParser(prog=prog, allow_abbrev=False)
    parser.add_argument('--config', help='YAML file with settings')
    hints = get_type_hints(kind)
    if recipes:
        text = f'settings that go together ({", ".join(recipes)}), before those of the file; other flags go first'
        parser.add_argument('--recipe', help=text, default=argparse.SUPPRESS)
        hints['recipe'] = str
    for setting in fields(kind):  # type: ignore[arg-type]  # a dataclass, which TypeVar cannot say
        _add_argument(parser, setting, hints[setting.name], positional)
    given = vars(parser.parse_args(argv))
    file = given.pop('config', None)
    values: dict[str, Any] = {}
    for layer in (_read_yaml(Path(file), hints) if file else {}, given):
        if (name := layer.pop('recipe', None)) is not None:
            if not recipes or name not in recipes:
                raise SnnetError(f"recipe is one of {', '.join(recipes or ())}, not '{name}'")
            values.update(recipes[name])
        values.update(layer)
    return kind(**{name: convert(name, value, hints[name]) for name, value in values.items()})


def convert(name: str, value: Any, hint: Any) -> Any:
    """A value as its setting's type.

    Raises:
        SnnetError: it does not fit.
    """
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    kind = kinds[0]
    try:
        if kind is bool and isinstance(value, bool):
            return value
        if get_origin(kind) is tuple and isinstance(value, (list, tuple)) and len(value) == len(get_args(kind)):
            return tuple(float(x) for x in value)
        if get_origin(kind) is list:
            values = value if isinstance(value, (list, tuple)) else [value]
            return [convert(name, x, get_args(kind)[0]) for x in values]
        if kind is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
        if kind in (int, float) and not isinstance(value, bool) and (kind is float or float(value).is_integer()):
            return kind(float(value))
    except (TypeError, ValueError):
        pass
    wanted = getattr(kind, '__name__', str(kind))
    raise SnnetError(f"setting '{name}' wants {wanted}, but got {value!r}")


def changes(settings: Any, before: dict[str, Any]) -> list[str]:
    """What differs from earlier settings among those that decide the result, each as 'lr was 0.1, is 0.2'."""
    fixed = [setting.name for setting in fields(settings) if not setting.metadata['free']]
    now = yaml.safe_load(to_yaml(settings))
    return [f'{name} was {before.get(name)!r}, is {now[name]!r}' for name in fixed if now[name] != before.get(name)]


def to_yaml(settings: Any) -> str:
    """All settings as a YAML file that gives them again."""
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(settings).items()}
    return yaml.safe_dump(values, sort_keys=False)


def _add_argument(parser: argparse.ArgumentParser, setting: Any, hint: Any, positional: str) -> None:
    default = setting.default if setting.default is not MISSING else setting.default_factory()
    text = setting.metadata['help'] + ('' if default in (None, '', []) else f' (default: {default})')
    text = text.replace('%', '%%')
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if setting.name == positional:
        parser.add_argument(positional, help=text)
        return
    flag = '--' + setting.name.replace('_', '-')
    more: dict[str, Any] = {'default': argparse.SUPPRESS, 'dest': setting.name, 'help': text}
    if kinds[0] is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, **more)
    elif get_origin(kinds[0]) is tuple:
        parser.add_argument(flag, nargs=len(get_args(kinds[0])), type=float, **more)
    elif get_origin(kinds[0]) is list:
        parser.add_argument(flag, nargs='+', **more)
    else:
        parser.add_argument(flag, type=kinds[0], **more)


def _read_yaml(path: Path, hints: dict[str, Any]) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding='utf-8')) or {}
    except OSError as error:
        raise SnnetError(f'config {path} cannot be read: {error.strerror}') from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SnnetError(f'config {path} is no YAML: {" ".join(str(error).split())}') from None
    if not isinstance(values, dict):
        raise SnnetError(f'config {path} is no table of settings')
    for key in values:
        if key not in hints:
            raise SnnetError(f"config {path}: unknown setting '{key}'{did_you_mean(str(key), hints)}")
    return values
