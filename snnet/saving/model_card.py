"""The model card of a saved net: README.md with the front matter of the Hub, the frontier and its picture."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from timm.models import get_pretrained_cfg

from ..budget.frontier import frontier, frontier_table
from ..budget.plot import draw_curve
from ..budget.record import Record
from ..errors import MissingExtra
from ..utils.files import write_atomically, write_text
from .file_names import CARD, PICTURE

_SECTION = re.compile(r'<!-- snnet (?P<rest>\w+): .*?-->.*<!-- end of snnet -->\n?', re.DOTALL)
"""The section that is rewritten; its first line holds a digest of the rest of the card as it was generated."""
_NOTE = 'everything from this line to the end of snnet is rewritten whenever the net is saved or evaluated'


def write_card(
    folder: Path, config: Mapping[str, Any], records: Sequence[Record], *, license: str | None = None, name: str = '.'
) -> None:
    """Writes README.md, and a picture of the frontier where stitches were evaluated and matplotlib is installed.

    An existing card stays the user's: only the section between the two marks is rewritten. The rest is rewritten too
    where nobody has edited it. A card without the marks is left alone, unless it is nothing but front matter.

    Args:
        folder: of the saved net.
        config: of the net, as in config.json.
        records: of its stitches.
        license: of the weights, in the words of the Hub; by default what the card says, else 'unknown'.
        name: of the repository that the card is for; by default the folder itself.
    """
    path = folder / CARD
    try:
        there = path.read_text(encoding='utf-8')
    except FileNotFoundError:
        there = ''
    except UnicodeDecodeError:
        return  # not written by us
    title = ' > '.join(str(anchor['name']) for anchor in config['anchors'])
    picture = _draw(folder / PICTURE, records, title)
    before, mark, after = _rest(there)
    if mark is None and before and not _is_only_front_matter(before):
        return
    if not before or (mark is not None and mark == _digest(before + after)):  # nobody has edited it
        before, after = f'{_front_matter(config, license or _license(before))}\n# {title}\n\n', ''
        mark = _digest(before)
    elif mark is None:
        before, mark = f'{before.rstrip()}\n\n# {title}\n\n', 'edited'
    parts = [f'<!-- snnet {mark}: {_NOTE} -->', _usage(config, records, name), _anchors(config, records)]
    parts += [_frontier(records, picture), _measured(config, records), '<!-- end of snnet -->\n']
    write_text(path, before + '\n\n'.join(parts) + after)


def _rest(card: str) -> tuple[str, str | None, str]:
    """The text before the section, the digest in its mark (None without a section), the text after it."""
    match = _SECTION.search(card)
    return (card, None, '') if match is None else (card[: match.start()], match['rest'], card[match.end() :])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _is_only_front_matter(text: str) -> bool:
    return bool(re.fullmatch(r'\s*---\s*\n.*?\n---\s*', text, re.DOTALL))


def _license(text: str) -> str:
    """The license in the front matter of a card."""
    found = re.search(r'^license: *(\S.*)$', text.partition('\n---')[0], re.MULTILINE)
    return found[1].strip() if found else 'unknown'


def _front_matter(config: Mapping[str, Any], license: str) -> str:
    """What the Hub reads; data sets and evaluation results are left to the user, who knows them."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        library_name='snnet',
        pipeline_tag='image-classification',
        license=license,
        tags=['image-classification', 'snnet', 'timm', 'stitchable-neural-network'],
        base_model=[name for anchor in config['anchors'] if (name := _hub_id(anchor))] or None,
    )
    return f'---\n{data.to_yaml()}\n---\n'


def _hub_id(anchor: Mapping[str, Any]) -> str | None:
    """Where timm keeps the weights with an anchor's tag; None where they are for another network."""
    model = anchor['model']
    if '.' not in model or anchor['args'].keys() - {'num_classes', 'drop_path_rate', 'img_size'}:
        return None
    where = getattr(get_pretrained_cfg(model), 'hf_hub_id', None)
    return f'{where}{model}' if where and where.endswith('/') else where


def _usage(config: Mapping[str, Any], records: Sequence[Record], name: str) -> str:
    stitches, anchors = len(config['stitches']), len(config['anchors'])
    flops = sorted(record.flops for record in records if record.flops is not None)
    budget = flops[len(flops) // 2] * 1.01 if flops else 3e9
    size = 'x'.join(map(str, config['anchors'][0]['input_size'][1:]))
    return f"""\
One network that is {stitches} networks: {anchors} pretrained *anchors*, joined by 1x1 *stitch layers*
([Stitchable Neural Networks](https://arxiv.org/abs/2302.06586)), from which a budget picks a sub-network at run time.

```python
import snnet

net = snnet.StitchableNet.from_pretrained('{name}')  # a folder with these files, or OWNER/NAME on the Hub
net.select_for_budget(flops={budget:.2e})  # most multiply-adds per image; params=... limits parameters
logits = net(images)  # (N, 3, height, width), here {size}, normalized as for {config['anchors'][0]['name']}
```"""


def _anchors(config: Mapping[str, Any], records: Sequence[Record]) -> str:
    """The exact networks, with their costs and accuracies."""
    own = {record.legs.partition('[')[0]: record for record in records if record.anchor}
    rows = [
        '## Anchors',
        '| anchor | network in timm and tag | arguments | GFLOPs | Mparams | top-1 |',
    ]
    rows.append('|---|---|---|---|---|---|')
    for anchor in config['anchors']:
        record = own.get(anchor['name'], Record(-1, ''))
        args = ', '.join(f'{key}={value!r}' for key, value in anchor['args'].items())
        costs = [(record.flops, 1e9), (record.params, 1e6), (record.top1, 1.0)]
        cells = [anchor['name'], f'`{anchor["model"]}`', f'`{args}`' if args else '']
        cells += ['' if value is None else f'{value / unit:.4g}' for value, unit in costs]
        rows.append(f'| {" | ".join(str(cell).replace("|", "&#124;") for cell in cells)} |')
    text = '\n'.join([rows[0], '', *rows[1:]])
    if any(anchor.get('official') for anchor in config['anchors']):
        text += '\n\nStitches run as in the published implementation (`official`).'
    return text


def _frontier(records: Sequence[Record], picture: bool) -> str:
    text = '## Frontier\n\n'
    if frontier(records):
        shown = f'![accuracy over FLOPs of every stitch]({PICTURE})\n\n' if picture else ''
        return f'{text}{shown}```text\n{frontier_table(records)}\n```'
    return text + 'No stitch has been evaluated yet (`eval_stitches.py` does that).'


def _measured(config: Mapping[str, Any], records: Sequence[Record]) -> str:
    """What the numbers are, and what is not known."""
    text = '## What was measured\n\n'
    text += 'FLOPs are multiply-adds for one image in the convention of fvcore, with attention counted.'
    counts = {record.n for record in records if record.n is not None and record.top1 is not None}
    if counts:
        images = ' to '.join(str(count) for count in sorted({min(counts), max(counts)}))
        text += f' Accuracy in percent was measured over {images} images of a data set that this card does not know.'
    if statistics := config.get('statistics'):
        groups = statistics.get('groups', [{'share': 1, 'stitches': statistics['stitches']}])
        own = [stitch for group in groups if group['share'] for stitch in group['stitches']]
        held_out = statistics.get('held_out', 0)
        judged = f', kept where they did better on {held_out} others' if held_out else ''
        text += (
            f' {len(own)} stitches have their own BatchNorm statistics, from {statistics["samples"]} images{judged}.'
        )
    if fitted := config.get('own_parameters'):
        text += (
            f' {len(fitted["stitches"])} stitches have parameters of their own, {fitted["count"] / 1e6:.4g} M together '
            f'(`snnet.adapt`); the anchors are as they were.'
        )
    return text


def _draw(path: Path, records: Sequence[Record], title: str) -> bool:
    """Draws the picture and says whether that was possible; otherwise an older one is removed."""
    if not frontier(records):
        path.unlink(missing_ok=True)
        return False
    try:
        with TemporaryDirectory() as scratch:
            drawn = draw_curve(records, Path(scratch) / 'curve', title)[0].read_bytes()
    except MissingExtra:
        path.unlink(missing_ok=True)
        return False
    write_atomically(path, lambda temporary: temporary.write_bytes(drawn))
    return True
