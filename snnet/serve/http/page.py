"""The page at /: files of this package, which load nothing from elsewhere."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

TYPES = {'html': 'text/html; charset=utf-8', 'css': 'text/css; charset=utf-8', 'js': 'text/javascript; charset=utf-8',
         'svg': 'image/svg+xml'}  # fmt: skip
PAGE = 'page.html'


def add_page(app: FastAPI) -> None:
    """Adds the page and its files to an application."""
    from fastapi import Response

    folder = files(__package__) / 'assets'
    found = {entry.name: (entry.read_bytes(), TYPES[entry.name.rpartition('.')[2]]) for entry in folder.iterdir()}

    def reply(name: str) -> Response:
        content, kind = found[name]
        return Response(content, headers={'Content-Type': kind, 'Cache-Control': 'no-cache'})

    def get_page() -> Response:
        return reply(PAGE)

    def get_asset(name: str) -> Response:
        return reply(name) if name in found else Response('there is no such file', 404)

    def get_icon() -> Response:
        return reply('icon.svg')

    app.add_route('/', lambda request: get_page(), include_in_schema=False)
    app.add_route('/favicon.ico', lambda request: get_icon(), include_in_schema=False)
    app.add_route('/assets/{name}', lambda request: get_asset(request.path_params['name']), include_in_schema=False)
