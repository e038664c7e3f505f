"""Uses the page of a running service in headless Chromium, by keyboard, and says what does not work.

    python -m tools.check_page http://127.0.0.1:8000 --screenshots docs

It needs Chromium and its driver (Debian: chromium, chromium-driver), and speaks the W3C WebDriver protocol to them.
The page must load nothing from elsewhere, answer, follow the sliders, show a refusal, name every control, and be
readable in light and dark.
"""

from __future__ import annotations

import argparse
import base64
import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

ELEMENT = 'element-6066-11e4-a52e-4f735466cecf'
TAB, ENTER, HOME, END = '\ue004', '\ue007', '\ue011', '\ue010'
SECONDS = 30.0
CONTRAST = 4.5
"""Least contrast of text (WCAG 2.2, level AA)."""
_FLAGS = (
    '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-component-update',
    '--disable-background-networking', '--disable-sync', '--window-size=1200,1000',
)  # fmt: skip
_COLORS = """
const rgb = (c) => c.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
  .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
const light = (c) => { const [r, g, b] = rgb(c); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const under = (e) => { while (e) { const c = getComputedStyle(e).backgroundColor;
  if (!c.endsWith(', 0)') && c !== 'transparent') return c; e = e.parentElement; } return 'rgb(255, 255, 255)'; };
return [...document.querySelectorAll('h1, h2, p, label, button, output, dt, dd, figcaption, li span')]
  .filter((e) => e.textContent.trim() && e.offsetParent)
  .map((e) => { const [a, b] = [light(getComputedStyle(e).color), light(under(e))];
    return [e.textContent.trim().slice(0, 40), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]; });
"""


class Browser:
    """A session of a WebDriver.

    Args:
        port: of the driver on this machine.
        folder: for the profile of the browser.
    """

    def __init__(self, port: int, folder: Path) -> None:
        self._root = f'http://127.0.0.1:{port}'
        options = {'args': [*_FLAGS, f'--user-data-dir={folder}'], 'binary': shutil.which('chromium')}
        wanted = {'goog:chromeOptions': options, 'goog:loggingPrefs': {'browser': 'ALL'}}
        self._session = f'/session/{self.call("/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]}'

    def call(self, path: str, values: dict[str, Any] | None = None, method: str | None = None) -> Any:
        """The driver's answer: to a POST where values are given, else to a GET, unless a method is named."""
        data = None if values is None else json.dumps(values).encode()
        request = Request(self._root + path, data, {'Content-Type': 'application/json'}, method=method)
        try:
            with urlopen(request, timeout=60) as reply:
                return json.loads(reply.read())['value']
        except HTTPError as error:
            raise AssertionError(json.loads(error.read())['value']['message'].splitlines()[0]) from None

    def close(self) -> None:
        """Ends the browser."""
        self.call(self._session, method='DELETE')

    def do(self, command: str, **values: Any) -> Any:
        """The answer to a command of this session that changes something."""
        return self.call(f'{self._session}/{command}', values)

    def get(self, command: str) -> Any:
        """The answer to a question of this session."""
        return self.call(f'{self._session}/{command}')

    def run(self, script: str) -> Any:
        """What a script returns in the page."""
        return self.do('execute/sync', script=script, args=[])

    def find(self, selector: str) -> str:
        """The id of an element."""
        return str(self.do('element', using='css selector', value=selector)[ELEMENT])

    def press(self, *keys: str) -> None:
        """Presses keys, where the focus is."""
        actions = [{'type': kind, 'value': key} for key in keys for kind in ('keyDown', 'keyUp')]
        self.do('actions', actions=[{'type': 'key', 'id': 'keyboard', 'actions': actions}])

    def tab_to(self, name: str) -> None:
        """Moves the focus by the tab key until it is on the element with an id."""
        for _ in range(40):
            if self.run('return document.activeElement.id') == name:
                return
            self.press(TAB)
        raise AssertionError(f'the tab key does not lead to {name}')

    def text(self, name: str) -> str:
        """The text of the element with an id."""
        return str(self.run(f'return document.getElementById("{name}").textContent'))

    def wait_for(self, condition: str) -> Any:
        """The value of an expression of JavaScript, once it is true."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            if value := self.run(f'return {condition}'):
                return value
            time.sleep(0.02)
        raise AssertionError(f'not true within {SECONDS:g} s: {condition}')

    def emulate(self, scheme: str) -> None:
        """Makes the page light or dark."""
        features = [{'name': 'prefers-color-scheme', 'value': scheme}]
        self.do('goog/cdp/execute', cmd='Emulation.setEmulatedMedia', params={'features': features})

    def screenshot(self, file: Path) -> None:
        """Writes a picture of the page."""
        file.write_bytes(base64.b64decode(self.get('screenshot')))


@contextmanager
def browser() -> Iterator[Browser]:
    """Headless Chromium with its driver."""
    with socket.socket() as free, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
        free.close()
        driver = subprocess.Popen(['chromedriver', f'--port={port}'], stdout=subprocess.DEVNULL)
        try:
            _wait_for(port)
            session = Browser(port, Path(folder))
            yield session
            session.close()
        finally:
            driver.terminate()
            driver.wait(20)


def _wait_for(port: int) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        try:
            urlopen(f'http://127.0.0.1:{port}/status', timeout=5).close()
            return
        except (URLError, ConnectionError):
            time.sleep(0.05)
    raise AssertionError('chromedriver does not start')


def check_page(page: Browser, url: str, picture: Path | None = None, screenshots: Path | None = None) -> None:
    """Uses the page as a person would.

    Raises:
        AssertionError: says what does not work.
    """
    page.do('url', url=url)
    page.wait_for('document.querySelectorAll("#points circle").length')
    _check_origin(page, url)
    _check_names(page)
    _ask_by_keyboard(page)
    if picture is not None:
        page.do(f'element/{page.find("#file")}/value', text=str(picture.resolve()))
        page.wait_for('document.getElementById("answer").textContent.includes("by stitch")')
    _follow_budget(page)
    for scheme in ('light', 'dark'):
        page.emulate(scheme)
        weak = [(text, round(ratio, 2)) for text, ratio in page.run(_COLORS) if ratio < CONTRAST]
        assert not weak, f'too little contrast in {scheme}: {weak}'
        if screenshots is not None:
            page.screenshot(screenshots / f'page_{scheme}.png')
    _see_a_refusal(page)
    errors = [entry['message'] for entry in page.do('se/log', type='browser') if entry['level'] == 'SEVERE']
    errors = [message for message in errors if '/v1/predict' not in message]  # refusals are errors to the browser
    assert not errors, errors


def _check_origin(page: Browser, url: str) -> None:
    loaded = page.run('return performance.getEntriesByType("resource").map((entry) => entry.name)')
    assert loaded
    assert all(name.startswith(url.rstrip('/')) for name in loaded), loaded


def _check_names(page: Browser) -> None:
    """Every control has a name for those who do not see it."""
    for found in page.do('elements', using='css selector', value='button, input, select, svg[role=img], summary'):
        name = page.get(f'element/{found[ELEMENT]}/computedlabel')
        assert name, f'no name: {page.get(f"element/{found[ELEMENT]}/property/outerHTML")}'


def _ask_by_keyboard(page: Browser) -> None:
    page.tab_to('pattern')
    page.press(ENTER)
    page.wait_for('document.getElementById("answer").textContent.includes("by stitch")')
    assert page.run('return document.querySelectorAll("#answer li").length') > 0
    page.wait_for('!document.getElementById("use").hasAttribute("hidden")')


def _follow_budget(page: Browser) -> None:
    """The cheapest stitch answers under the smallest budget, and the ring moves there."""
    cheapest = 'Math.min(...model().choices.map((c) => stitch(c.stitch).flops))'
    page.tab_to('budget')
    page.press(HOME)
    page.wait_for(f'Number(document.getElementById("use").getAttribute("cx")) === scale.x({cheapest})')
    assert 'MFLOPs' in page.text('budget-text')
    page.press(END)
    page.wait_for('document.getElementById("budget-text").textContent === "no limit"')


def _see_a_refusal(page: Browser) -> None:
    page.run('byId("deadline").min = -100')  # shorter than any net
    page.run('byId("deadline").focus()')
    page.press(HOME)
    page.wait_for('document.getElementById("refusal").textContent.startsWith("Refused (4")')


def main() -> None:
    """Checks the page at an address."""
    parser = argparse.ArgumentParser(description='Uses the page of a running service in headless Chromium.')
    parser.add_argument('url', help='address of the service')
    parser.add_argument('--picture', type=Path, help='a picture to send')
    parser.add_argument('--screenshots', type=Path, help='folder for pictures of the page')
    args = parser.parse_args()
    with browser() as page:
        check_page(page, args.url, args.picture, args.screenshots)
    print('the page works')


if __name__ == '__main__':
    main()
