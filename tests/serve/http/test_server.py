"""`snnet serve` as a process: bad input, signals, kills."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from contextlib import ExitStack
from http.client import HTTPException
from itertools import pairwise
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest

from snnet.cli.main import main
from snnet.errors import SnnetError
from snnet.serve.build_service import named_sources
from snnet.serve.http.server import ACCEPTED, bind, listeners
from tests.helpers.scripts import Script, free_port
from tests.helpers.served import picture, save_net

HEADERS = {'Content-Type': 'image/png'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return save_net(tmp_path_factory.mktemp('serve') / 'net')


class Server:
    """`snnet serve` in a process."""

    def __init__(self, folder: Path, *args: object) -> None:
        self.port = free_port()
        self.script = Script('snnet', 'serve', folder, '--port', self.port, '--deadline-ms', 20_000, *args)
        self.pid = self.script._processes[0].pid
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        for _ in range(6000):
            try:
                if self.get('/readyz'):
                    return
            except (URLError, ConnectionError):
                assert self.script.running, self.script.end().stderr
            time.sleep(0.01)
        pytest.fail('it was not ready in a minute')

    def get(self, path: str):
        with urlopen(f'http://127.0.0.1:{self.port}{path}', timeout=30) as reply:
            return json.loads(reply.read())

    def ask(self, query: str = '') -> int:
        """The status of a request; 0 where the server cannot be reached or ends in the middle."""
        request = Request(f'http://127.0.0.1:{self.port}/v1/predict?{query}', picture(), HEADERS)
        try:
            with urlopen(request, timeout=30) as reply:
                return reply.status if json.loads(reply.read())['results'] else -1
        except HTTPError as error:
            return error.code
        except (OSError, HTTPException):  # a reply that is cut off is an HTTPException
            return 0


@pytest.mark.parametrize(
    ('nets', 'told'),
    [
        (['a/net', 'b/net'], "two nets are named 'net': give one of them another name with NAME=b/net"),
        (['a net'], "'a net' cannot be part of an address: name the net with NAME=a net"),
        (['x/y=runs/net'], "'x/y' cannot be part of an address"),
    ],
)
def test_names_that_cannot_be_are_refused(nets, told):
    with pytest.raises(SnnetError, match=told):
        named_sources(nets)


def test_nets_are_named_after_their_folder_or_as_is_said():
    assert named_sources(['runs/one', 'two=runs/one', 'me/three@main']) == {
        'one': 'runs/one', 'two': 'runs/one', 'three': 'me/three@main',
    }  # fmt: skip


@pytest.mark.parametrize(
    ('flags', 'told'),
    [
        (['--deadline-ms', '0'], 'deadline_ms is above 0'),
        (['--deadline-ms', 'nan'], 'deadline_ms is above 0'),
        (['--device', 'abacus'], "there is no device 'abacus'"),
        (['--max-batch', '0'], 'max_batch is at least 1'),
        (['--api-key-file', 'missing'], "the API key in 'missing' cannot be read"),
        (['--dtype', 'int8'], 'dtype is one of'),
        (['--hang-seconds', '0'], 'hang_seconds is at least 0.1'),
    ],
)
def test_settings_that_cannot_be_end_with_one_sentence(capsys, flags, told):
    assert main(['serve', 'net', *flags]) == 2
    assert told in capsys.readouterr().err


def test_a_port_in_use_is_refused():
    with bind('127.0.0.1', 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SnnetError, match=f'port {port} of 127.0.0.1 is in use by another program'):
            bind('127.0.0.1', port)
    with pytest.raises(SnnetError, match='a port is a number from 0 to 65535, not 70000'):
        bind('127.0.0.1', 70_000)
    with pytest.raises(SnnetError, match='cannot be used'):
        bind('no.such.host.invalid', 8000)


@pytest.mark.slow
def test_sigterm_answers_what_was_admitted_and_exits_with_0(folder):
    server = Server(folder)
    statuses: list[int] = []
    begun = threading.Event()

    def ask() -> None:
        while not statuses or statuses[-1] == 200:
            statuses.append(server.ask())
            begun.set()

    asking = [threading.Thread(target=ask) for _ in range(4)]
    for thread in asking:
        thread.start()
    begun.wait(60)
    os.kill(server.pid, signal.SIGTERM)
    for thread in asking:
        thread.join(60)
    done = server.script.end()
    assert done.returncode == 0, done.stderr
    assert 'draining' in done.stderr
    assert set(statuses) <= {200, 503, 0}  # 0: the connection was not accepted any more
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{')]
    answered = [line for line in lines if line['path'] == '/v1/predict' and line['status'] == 200]
    assert len(answered) == statuses.count(200)  # none was answered and lost


@pytest.mark.slow
def test_sighup_reloads_under_load_without_losing_a_request(folder):
    server = Server(folder)
    os.kill(server.pid, signal.SIGHUP)
    statuses = []
    for _ in range(3000):
        statuses.append(server.ask())
        if server.get('/v1/stitches')['models'][0]['version'] == 2:
            break
    assert server.get('/v1/stitches')['models'][0]['version'] == 2
    assert set(statuses) == {200}
    weights = folder / 'model.safetensors'
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        os.kill(server.pid, signal.SIGHUP)
        err = Path(server.script._err)
        for _ in range(3000):
            if 'is not reloaded, the old net goes on' in err.read_text():
                break
            time.sleep(0.01)
        assert 'is not reloaded, the old net goes on' in err.read_text()
        assert server.ask() == 200
    finally:
        weights.write_bytes(whole)
        server.script.terminate()
        assert server.script.end().returncode == 0


@pytest.mark.slow
def test_a_server_that_is_killed_leaves_no_client_hanging_and_a_new_one_takes_its_port(folder):
    server = Server(folder)
    statuses: list[int] = []

    def ask() -> None:
        while 0 not in statuses:
            statuses.append(server.ask())

    asking = [threading.Thread(target=ask) for _ in range(4)]
    for thread in asking:
        thread.start()
    while 200 not in statuses:
        time.sleep(0.001)
    os.kill(server.pid, signal.SIGKILL)
    begin = time.monotonic()
    for thread in asking:
        thread.join(30)
    assert time.monotonic() - begin < 10
    assert set(statuses) == {200, 0}
    server.script.end()
    bind('127.0.0.1', server.port).close()


@pytest.mark.slow
def test_a_deadline_below_the_fastest_stitch_ends_the_start_with_one_sentence(folder):
    done = Script('snnet', 'serve', folder, '--port', free_port(), '--deadline-ms', 0.001).end()
    assert done.returncode == 2
    assert "no stitch of 'net' meets a deadline of 0.001 ms: the fastest takes" in done.stderr.splitlines()[-1]


def test_a_turn_of_the_loop_accepts_several_connections():
    uvloop = pytest.importorskip('uvloop')
    accepted: list[asyncio.Protocol] = []

    class Connection(asyncio.Protocol):
        def connection_made(self, transport):
            accepted.append(self)
            transport.close()

    async def accept(bound) -> list[int]:
        loop, counts = asyncio.get_running_loop(), [0]
        servers = [await loop.create_server(Connection, sock=one) for one in listeners(bound)]
        for _ in range(2 * ACCEPTED):  # the kernel answers, so this waits for nobody
            closing.enter_context(socket.create_connection(bound.getsockname()))
        for _ in range(1000):
            await asyncio.sleep(0)
            counts.append(len(accepted))
        for server in servers:
            server.close()
        return counts

    with ExitStack() as closing:
        counts = uvloop.run(accept(bind('127.0.0.1', 0)))
    assert max(after - before for before, after in pairwise(counts)) == ACCEPTED
