from __future__ import annotations

from snnet.serve.http.recent_load import SECONDS, Happening, Recent


def test_what_is_older_than_the_last_seconds_is_forgotten_though_nobody_asks():
    recent = Recent()
    for moment in range(1000):
        recent.add(Happening(float(moment), moment % 2 == 0, 3, 70.0, 0.01))
    assert len(recent._seen) == SECONDS + 1
    assert recent.attainment(999.0) == 100 * 5 / 11
    assert recent.attainment(2000.0) is None
