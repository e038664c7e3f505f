"""Files as strangers may write them: JSON with values changed at random, and a watch over what is opened meanwhile."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from snnet import SnnetError

JUNK = [
    None, True, False, 0, -1, 1, 3, 10**9, 10**30, -(10**30), 0.5, -0.0, 1e308, '', 'x', '\x00', '../..',
    '/etc/passwd', 'ü' * 50, 'a' * 5000, '\ud800', [], [3], [[]], [None], [3, 20000, 20000], [1] * 1000, {}, {'a': 1},
    {'checkpoint_path': '/etc/passwd'}, {'model': 'resnet18'}, 'resnet18.../../x', 'vit_tiny_patch16_224',
    'reassembled', 'hf-hub:someone/something', 'local-dir:/etc', '0' * 64,
    'small[:1] > large[1:]', 'small[' + '9' * 5000 + ':]',
]  # fmt: skip
SYNTAX = ['NaN', 'Infinity', '[' * 100_000, '9' * 5000, '"', '\x00', '}', '{"a":1,"a":2}']
KEYS = ['checkpoint_path', 'pretrained', 'pretrained_cfg', 'pretrained_cfg_overlay', 'features_only', 'cache_dir', 'x']
WATCHED = ('open', 'os.rename', 'os.remove', 'os.mkdir', 'os.rmdir', 'subprocess.Popen', 'socket.connect')
opened: list[tuple[str, str]] = []
watching = False


def _note_opened(event: str, args: tuple[Any, ...]) -> None:
    if watching and event in WATCHED:
        opened.append((event, str(args[0])))


sys.addaudithook(_note_opened)


@contextlib.contextmanager
def nothing_outside(folder: Path) -> Iterator[None]:
    """Nothing but the folder, Python's own files and the machine's description is opened within a `with` block."""
    global watching
    allowed = [str(folder), sys.prefix, sys.base_prefix, str(Path(torch.__file__).parents[1]), '/proc', '/sys', '/dev']
    allowed.append(str(Path(__file__).parents[2]))
    opened.clear()
    watching = True
    try:
        yield
    finally:
        watching = False
    strange = [(event, path) for event, path in opened if not path.startswith(tuple(allowed)) and not path.isdigit()]
    assert strange == []


@contextlib.contextmanager
def folder_in_memory() -> Iterator[Path]:
    """A temporary folder, in memory where there is a place for that: disks take milliseconds to rewrite a file."""
    memory = Path('/dev/shm')
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value: a table or list, and a key or index of it."""
    found, left = list[tuple[Any, Any]](), [value]
    while left:
        owner = left.pop()
        for key, item in owner.items() if isinstance(owner, dict) else enumerate(owner):
            found.append((owner, key))
            if isinstance(item, dict | list):
                left.append(item)
    return found


def mutated(config: Any, rng: random.Random) -> bytes:
    """The text of a config with one to three changes."""
    config = json.loads(json.dumps(config))
    for _ in range(rng.randint(1, 3)):
        owner, key = rng.choice(places(config))
        how = rng.random()
        if how < 0.7:
            owner[key] = copy.deepcopy(rng.choice(JUNK))
        elif how < 0.85 and isinstance(owner, dict):
            owner[rng.choice(KEYS)] = copy.deepcopy(rng.choice(JUNK))
        else:
            del owner[key]
        if not config:
            break
    text = json.dumps(config)
    how = rng.random()
    if how < 0.1:
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(SYNTAX) + text[at:]
    elif how < 0.15:
        text = text[: rng.randrange(len(text))]
    return text.encode('utf-8', 'surrogatepass')


def is_refused(read: Callable[[], object]) -> bool:
    """Whether reading ends in an error of ours, which has to be one sentence; any other error goes on."""
    said = None
    try:
        read()
    except SnnetError as error:
        said = str(error)
    assert said is None or ('\n' not in said and len(said) < 1000), said[:2000]
    return said is not None
