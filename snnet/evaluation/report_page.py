"""A report as one page of HTML that needs nothing else: pictures and styles are inside."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from ..budget.frontier import frontier, mixing_accuracy
from ..budget.record import Record

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: right }
th:last-child, td:last-child { text-align: left }
svg { max-width: 100%; height: auto }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: 1rem; font-size: 14px }
.images img { width: 100%; border-radius: 4px }
figure { margin: 0 }
.note { color: #666 }
"""
_SIDE = 220
"""Largest side of a thumbnail in pixels."""


@dataclass(frozen=True)
class ShownImage:
    """An image with what is said about it.

    Attributes:
        image: the picture.
        title: its class.
        text: which stitches get it right.
    """

    image: Image.Image
    title: str
    text: str


@dataclass(frozen=True)
class Chart:
    """A picture.

    Attributes:
        title: heading above it.
        svg: the drawing; empty where there is none.
        note: said below it, or in its place.
    """

    title: str
    svg: str = ''
    note: str = ''


def page(
    title: str, facts: Sequence[str], charts: Sequence[Chart], records: Sequence[Record], images: Sequence[ShownImage]
) -> str:
    """The page.

    Args:
        title: heading.
        facts: sentences below it.
        charts: pictures.
        records: what is known of the stitches.
        images: images that only larger stitches get right.
    """
    parts = [f'<h1>{escape(title)}</h1>', *(f'<p>{escape(fact)}</p>' for fact in facts)]
    for chart in charts:
        parts.append(f'<h2>{escape(chart.title)}</h2>{chart.svg}')
        parts += [f'<p class="note">{escape(chart.note)}</p>'] if chart.note else []
    best = frontier(records)
    if best:
        parts += ['<h2>Frontier</h2>', _table(best, records)]
    evaluated = [record for record in records if record.top1 is not None]
    if len(evaluated) > len(best):
        parts.append(f'<details><summary>All {len(evaluated)} evaluated stitches</summary>')
        parts += [_table(evaluated, records), '</details>']
    if images:
        parts += ['<h2>What only the larger stitches get right</h2>', '<div class="images">']
        parts += [_figure(shown) for shown in images]
        parts.append('</div>')
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    body = '\n'.join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _table(shown: Sequence[Record], records: Sequence[Record]) -> str:
    labelled = any(record.mean_average_precision is not None for record in records)
    head = ['id', 'GFLOPs', 'Mparams', 'ms', 'top-1', 'top-5', *(['mAP'] if labelled else []), 'vs mixing', 'stitch']
    rows = []
    for record in shown:
        mixing = None if record.anchor else mixing_accuracy(records, record.flops or 0)
        gain = '' if mixing is None or record.top1 is None else f'{record.top1 - mixing:+.2f}'
        cells = [
            str(record.stitch), _number(record.flops, 1e9), _number(record.params, 1e6), _number(record.latency_ms),
            _percent(record.top1), _percent(record.top5),
            *([_percent(record.mean_average_precision)] if labelled else []),
            gain, escape(record.legs) + (' *' if record.anchor else ''),
        ]  # fmt: skip
        rows.append('<tr>' + ''.join(f'<td>{cell}</td>' for cell in cells) + '</tr>')
    header = ''.join(f'<th>{name}</th>' for name in head)
    note = '<p class="note">* anchors. "vs mixing" compares with mixing two anchors at random at the same cost.</p>'
    return f'<table><tr>{header}</tr>{"".join(rows)}</table>{note}'


def _number(value: float | None, unit: float = 1.0) -> str:
    return '' if value is None else f'{value / unit:.4g}'


def _percent(value: float | None) -> str:
    return '' if value is None else f'{value:.2f}'


def _figure(shown: ShownImage) -> str:
    thumbnail = shown.image.convert('RGB')
    thumbnail.thumbnail((_SIDE, _SIDE))
    data = io.BytesIO()
    thumbnail.save(data, 'JPEG', quality=85)
    source = f'data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}'
    caption = f'<figcaption><b>{escape(shown.title)}</b><br>{escape(shown.text)}</figcaption>'
    return f'<figure><img src="{source}" alt="{escape(shown.title)}">{caption}</figure>'
