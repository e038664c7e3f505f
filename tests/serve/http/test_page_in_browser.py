from __future__ import annotations

import shutil

import pytest

from tests.helpers.served import live, picture
from tools.check_page import browser, check_page

MISSING = [program for program in ('chromium', 'chromedriver') if shutil.which(program) is None]


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f'{" and ".join(MISSING)} not installed (Debian: chromium-driver)')
def test_the_page_answers_moves_and_refuses_in_a_browser(tmp_path):
    (tmp_path / 'picture.png').write_bytes(picture())
    with live() as url, browser() as page:
        check_page(page, url, tmp_path / 'picture.png', tmp_path)
    assert {path.name for path in tmp_path.glob('*.png')} == {'picture.png', 'page_light.png', 'page_dark.png'}
