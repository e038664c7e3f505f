"""The service on Ray Serve, on one machine with two replicas, one of which is killed under load."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import yaml

from snnet.errors import MissingExtra, SnnetError
from snnet.serve.ray import OPTIONS, app, settings_of
from tests.helpers.scripts import free_port
from tests.helpers.served import picture, save_net

ROOT = Path(__file__).parents[2]


def test_settings_of_a_replica_are_those_of_the_command():
    settings = settings_of({'nets': ['a', 'b=c'], 'deadline_ms': 20, 'max_images': 3})
    assert (settings.nets, settings.deadline_ms, settings.limits.max_images) == (['a', 'b=c'], 20.0, 3)
    with pytest.raises(SnnetError, match="'deadline' is not a setting of a replica; did you mean deadline_ms"):
        settings_of({'deadline': 20})
    with pytest.raises(SnnetError, match="'port' is not a setting of a replica"):
        settings_of({'port': 8000})
    with pytest.raises(SnnetError, match="setting 'deadline_ms' expects float"):
        settings_of({'deadline_ms': 'soon'})


def test_without_ray_a_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'ray', None)
    with pytest.raises(MissingExtra, match=r"pip install -e '\.\[ray\]'"):
        app({'nets': ['a']})


def test_the_config_file_names_an_application_and_settings_that_exist():
    (application,) = yaml.safe_load((ROOT / 'examples' / 'ray_serve.yaml').read_text())['applications']
    assert application['import_path'] == 'snnet.serve.ray:app'
    assert settings_of(application['args']).nets == ['NET']


@pytest.fixture
def serve(monkeypatch):
    ray = pytest.importorskip('ray', reason='needs the extra ray')
    monkeypatch.setenv('RAY_USAGE_STATS_ENABLED', '0')
    variables = {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    ray.init(num_cpus=4, include_dashboard=False, logging_level='error', runtime_env={'env_vars': variables})
    from ray import serve

    yield serve
    serve.shutdown()
    ray.shutdown()


def ask(port: int, path: str = '/v1/predict') -> tuple[int, dict]:
    request = Request(f'http://127.0.0.1:{port}{path}', picture(), {'Content-Type': 'image/png'})
    try:
        with urlopen(request, timeout=30) as reply:
            return reply.status, json.loads(reply.read())
    except HTTPError as error:
        return error.code, {}
    except OSError:
        return 0, {}


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')  # Ray warns of what is about to change in it
def test_two_replicas_answer_and_one_that_is_killed_is_replaced(serve, tmp_path, monkeypatch):
    monkeypatch.setitem(OPTIONS['autoscaling_config'], 'min_replicas', 2)
    saved_net = save_net(tmp_path / 'net')
    port = free_port()
    serve.start(http_options={'host': '127.0.0.1', 'port': port})
    target = app({'nets': [f'net={saved_net}'], 'deadline_ms': 20_000, 'access_log': False})
    serve.run(target, name='snnet', route_prefix='/')
    assert ask(port)[0] == 200
    statuses: list[int] = []
    end = threading.Event()

    def load() -> None:
        while not end.is_set():
            statuses.append(ask(port)[0])

    asking = [threading.Thread(target=load) for _ in range(4)]
    for thread in asking:
        thread.start()
    pids = replicas()
    assert len(pids) == 2
    os.kill(pids[0], signal.SIGKILL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not set(replicas()) - set(pids):
        time.sleep(0.2)
    end.set()
    for thread in asking:
        thread.join(60)
    assert not any(thread.is_alive() for thread in asking)
    assert set(replicas()) - set(pids), 'the replica that was killed was not replaced'
    assert statuses.count(200) > 0
    assert ask(port)[0] == 200


def replicas() -> list[int]:
    """Processes of the replicas."""
    titles = {}
    for file in Path('/proc').glob('[0-9]*/cmdline'):
        with contextlib.suppress(OSError):
            titles[int(file.parent.name)] = file.read_bytes()
    return [pid for pid, title in titles.items() if title.startswith(b'ray::ServeReplica:snnet')]
