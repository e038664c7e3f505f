"""What breaks a service: malformed requests, and `kill -9` of its worker and of itself under load.

    python -m benchmarks.chaos --malformed 10000 --worker-kills 20 --server-kills 20

The service is `snnet serve` with two tiny networks, in another process on loopback. Malformed requests are those of
tests/serve/http/test_fuzz.py, and connections that end in the middle, send no end of headers, or write slowly. Load is
100 requests per second. A request hangs if nothing came a second after its deadline.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import tempfile
import time
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.service import Client, Held, Reply, Server

served: Any = import_module('tests.helpers.served')  # by name, because tests are not checked by mypy
fuzz: Any = import_module('tests.serve.http.test_fuzz')
DEADLINE = 0.5
RATE = 100.0
SIZE = (3, 32, 32)
LONGEST = 15.0
"""Most seconds from one kill of a worker to the next; it loads its net in about half of that, so some die before."""


async def read_status(reader: asyncio.StreamReader) -> int:
    """The status of a reply; 0 if the connection ends."""
    try:
        line = await asyncio.wait_for(reader.readline(), 30)
        return int(line.split(b' ')[1]) if line.startswith(b'HTTP/1.1 ') else 0
    except (OSError, asyncio.TimeoutError):
        return 0


async def send_malformed(port: int, draw: random.Random) -> int:
    """Sends one malformed request on a connection of its own; the status of the reply."""
    path, body, headers = fuzz.malformed(draw)
    path = path.replace('tiny', 'net').encode('utf-8', 'replace').decode('latin-1').replace('\x00', '%00')
    head = f'POST {path.replace(" ", "%20")} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n'
    head += ''.join(f'{name}: {value}\r\n' for name, value in headers.items())
    data = f'{head}Content-Length: {len(body)}\r\n\r\n'.encode('latin-1', 'replace') + body
    way = draw.randrange(20)
    if way == 0:
        data = data[: draw.randrange(len(data))]  # goes away in the middle
    elif way == 1:
        data = b'GET /healthz HTTP/1.1\r\n' + draw.choice([b'X: ' + b'a' * 200_000, b'X: 1\r\n' * 20_000])
    elif way == 2:
        data = draw.randbytes(draw.randrange(1, 5000))
    reader, writer = await asyncio.open_connection('127.0.0.1', port)
    try:
        if way == 3:
            for at in range(0, min(len(data), 400), 100):  # a slow writer, who gives up
                writer.write(data[at : at + 100])
                await asyncio.sleep(0.1)
        else:
            writer.write(data)
        if way <= 3:
            writer.write_eof()
        return await read_status(reader)
    except OSError:
        return 0
    finally:
        writer.close()


async def attack(server: Server, count: int, seed: int) -> str:
    """Sends malformed requests, 8 at a time, and looks at what they leave behind."""
    draw, statuses, sizes = random.Random(seed), Counter[int](), []
    left = iter(range(count))

    async def one_after_the_other() -> None:
        for number in left:
            if number in (count // 5, count // 2):
                sizes.append(Held.by(server.process.pid, *server.children()))
            statuses[await send_malformed(server.port, draw)] += 1

    await asyncio.gather(*(one_after_the_other() for _ in range(8)))
    await asyncio.sleep(6)  # headers may take five seconds
    sizes.append(Held.by(server.process.pid, *server.children()))
    good = await Client(server.port, served.npy(np.zeros(SIZE, np.float32))).ask('deadline_ms=10000')
    failed = sum(number for status, number in statuses.items() if status >= 500)
    grown = ', '.join(f'{size.megabytes:.0f} MB, {size.threads} threads, {size.files} files' for size in sizes)
    return (
        f'{count} malformed requests: {failed} of status 500 and above, {dict(sorted(statuses.items()))} (0: closed); '
        f'after a fifth, half and all: {grown}; the next good request: {good.status}'
    )


async def under_load(client: Client, seconds: float) -> list[Reply]:
    """Requests at an even rate."""
    return await client.send(np.arange(0, seconds, 1 / RATE), f'deadline_ms={1000 * DEADLINE:g}')


def summary(what: str, replies: list[Reply], recovered: list[float]) -> str:
    """One line about the kills."""
    statuses = Counter(reply.status for reply in replies)
    slowest = max(reply.seconds for reply in replies)
    hung = sum(reply.seconds > DEADLINE + 1 for reply in replies)
    return (
        f'{len(recovered)} kills of the {what}: {hung} of {len(replies)} requests hung, the slowest took '
        f'{slowest:.2f} s (deadline {DEADLINE:g} s); statuses {dict(sorted(statuses.items()))}; answered again after '
        f'{1000 * np.median(recovered):.0f} ms (median), {1000 * max(recovered):.0f} ms (longest)'
    )


async def kill_worker(server: Server, kills: int, seed: int) -> str:
    """Kills the process that computes, under load."""
    client, draw = Client(server.port, served.npy(np.zeros(SIZE, np.float32))), random.Random(seed)
    replies, recovered = list[Reply](), list[float]()
    for _ in range(kills):
        end = time.perf_counter() + 60
        while not (pids := server.children()) and time.perf_counter() < end:
            await asyncio.sleep(0.05)
        if not pids:
            raise SystemExit(f'after {len(recovered)} kills, no process computes')
        await asyncio.sleep(draw.uniform(0, LONGEST))
        load = asyncio.create_task(under_load(client, 2.0))
        await asyncio.sleep(0.5 + draw.random())
        os.kill((server.children() or pids)[0], signal.SIGKILL)
        begin = time.perf_counter()
        while (await client.ask('deadline_ms=500')).status != 200:
            pass
        recovered.append(time.perf_counter() - begin)
        replies += await load
    return summary('worker', replies, recovered)


async def kill_server(net: Path, kills: int, seed: int) -> str:
    """Kills the whole service under load, and starts it again."""
    draw, replies, recovered = random.Random(seed), list[Reply](), list[float]()
    server = start(net)
    for _ in range(kills):
        client = Client(server.port, served.npy(np.zeros(SIZE, np.float32)))
        load = asyncio.create_task(under_load(client, 1.0))
        await asyncio.sleep(0.2 + 0.6 * draw.random())
        workers = server.children()
        server.process.kill()
        replies += await load
        server.process.wait()
        begin = time.perf_counter()
        server = await asyncio.to_thread(start, net)
        assert (
            await Client(server.port, served.npy(np.zeros(SIZE, np.float32))).ask('deadline_ms=10000')
        ).status == 200
        recovered.append(time.perf_counter() - begin)
        left = [pid for pid in workers if Path(f'/proc/{pid}').exists()]
        assert not left, f'processes {left} outlive the service'
    assert server.stop() == 0
    return summary('server (with the time of its start)', replies, recovered)


def start(net: Path) -> Server:
    """A service of tiny networks."""
    return Server.start(net, 1000 * DEADLINE, ['--body-seconds', '2'])


def main() -> None:
    """Runs what is asked for, and prints a line each."""
    parser = argparse.ArgumentParser(description='Breaks a service on this machine.')
    parser.add_argument('--malformed', type=int, default=10_000, help='malformed requests')
    parser.add_argument('--worker-kills', type=int, default=20)
    parser.add_argument('--server-kills', type=int, default=20)
    parser.add_argument('--seed', type=int, default=2026)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        net = served.save_net(Path(folder) / 'net')
        server = start(net)
        try:
            if args.malformed:
                print(asyncio.run(attack(server, args.malformed, args.seed)), flush=True)
            if args.worker_kills:
                print(asyncio.run(kill_worker(server, args.worker_kills, args.seed)), flush=True)
        finally:
            print('the service ended with', server.stop(), flush=True)
        if args.server_kills:
            print(asyncio.run(kill_server(net, args.server_kills, args.seed)), flush=True)


if __name__ == '__main__':
    main()
