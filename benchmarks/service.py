"""A service against itself without HTTP: overhead, throughput, attainment by load, overload, and a soak.

    python benchmarks/service.py --seconds 20
    python benchmarks/service.py --net NET --plugin FILE --measure load overload
    python -m benchmarks.service --sleep --measure load overload
    python benchmarks/service.py --measure soak --soak-minutes 30 --soak-loads 0.1 0.3 0.5

Arrivals are open-loop (a request is sent when its time comes, whatever became of those before it), on loopback, from
this process. The service is `snnet serve` in another one, so two idle cores are the least that numbers mean something
on. Requests are prepared images (`application/x-npy`), so decoding is left out. Without --net, three MobileNets of 96
pixels (or --anchors) with random weights and made-up accuracies are stitched. With --sleep the net sleeps instead of
computing (benchmarks/sleeping_net.py), which leaves its core to others and shows the service alone.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import numpy as np
import torch
import uvloop

import snnet
from snnet.serve import Choice, Choices, World, draw_arrivals, simulate
from snnet.serve.simulation import ATTAINMENT

ANCHORS = 'mobilenetv3_small_050,mobilenetv3_small_100,mobilenetv3_large_100'
MEASUREMENTS = ('overhead', 'throughput', 'load', 'overload', 'soak')
MOST_CONNECTIONS = 1000
"""Below what the service accepts. Requests beyond it are not sent, because those that wait here are not open-loop."""
CALM = 40.0
"""Seconds from the end of a soak to the last look at what the service holds."""
ALLOWED = 0.005
"""Share of requests that may fail behind an overload that is over."""


class Reply(NamedTuple):
    """What became of a request: status (0 if the connection broke), seconds, and stitch and accuracy of an answer."""

    sent: float
    status: int
    seconds: float
    stitch: int | None
    top1: float | None


def make_net(anchors: str, folder: Path) -> Path:
    """Writes a net of real widths with random weights, and made-up accuracies that rise with FLOPs."""
    net = snnet.create_stitchable_net(anchors, pretrained=False, num_classes=100, img_size=96).eval()
    snnet.measure_costs(net)
    least = min(record.flops or 1 for record in net.records)
    net.records = [replace(r, top1=60 + 8 * float(np.log((r.flops or 1) / least)), n=1000) for r in net.records]
    net.save_pretrained(folder)
    return folder


class Held(NamedTuple):
    """What processes hold: megabytes, threads and open files.

    Pages of files are left out: the kernel takes them back when it likes, and a leak has none of them.
    """

    megabytes: float
    threads: int
    files: int

    @classmethod
    def by(cls, *pids: int) -> Held:
        """What these processes hold together."""
        return cls.sum(_memory(Path(f'/proc/{pid}')) for pid in pids)

    @classmethod
    def sum(cls, parts: Iterable[Held]) -> Held:
        """What several of them hold together."""
        return cls(*map(sum, zip((0.0, 0, 0), *parts, strict=True)))


def _memory(folder: Path) -> Held:
    status = dict(line.split(':', 1) for line in (folder / 'status').read_text().splitlines())
    kilobytes = sum(int(status.get(name, '0').split()[0]) for name in ('RssAnon', 'RssShmem', 'VmSwap'))
    return Held(kilobytes / 1000, len([*(folder / 'task').iterdir()]), len([*(folder / 'fd').iterdir()]))


@dataclass
class Server:
    """`snnet serve` in a process of its own."""

    process: subprocess.Popen[bytes]
    port: int

    @classmethod
    def start(cls, net: Path, deadline_ms: float, more: list[str], sleep: bool = False) -> Server:
        """Starts it and waits until it is ready; with `sleep`, its net does not compute."""
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        code = 'import sys; from snnet.cli.main import main; sys.exit(main())'
        flags = ['--port', str(port), '--deadline-ms', str(deadline_ms), '--threads', '1', '--no-access-log', *more]
        program = ['-m', 'benchmarks.sleeping_net'] if sleep else ['-c', code]
        server = cls(subprocess.Popen([sys.executable, *program, 'serve', f'net={net}', *flags]), port)
        while server.process.poll() is None:
            try:
                server.get('/readyz')
                return server
            except OSError:
                time.sleep(0.2)
        raise SystemExit('the service did not start')

    def get(self, path: str) -> Any:
        """What a route says."""
        with urlopen(f'http://127.0.0.1:{self.port}{path}', timeout=30) as reply:
            return json.loads(reply.read())

    def children(self) -> list[int]:
        """The processes that it started."""
        tasks = Path(f'/proc/{self.process.pid}/task').iterdir()
        return [int(pid) for task in tasks for pid in (task / 'children').read_text().split()]

    def pin(self) -> None:
        """Gives a core to the process that computes, and the others to the one that reads and to this one."""
        first, *others = sorted(os.sched_getaffinity(0))
        cores = {pid: {first} for pid in self.children()} | {pid: {*others} for pid in (self.process.pid, os.getpid())}
        for pid, own in cores.items():
            for task in Path(f'/proc/{pid}/task').iterdir():
                os.sched_setaffinity(int(task.name), own)

    def held(self) -> dict[str, Held]:
        """What the process that reads requests holds, and the one that computes."""
        return {'reading': Held.by(self.process.pid), 'computing': Held.by(*self.children())}

    def cpu(self) -> dict[str, float]:
        """CPU seconds of the process that reads requests, and of the one that computes."""
        return {
            'reading': _cpu_seconds(self.process.pid),
            'computing': sum(map(_cpu_seconds, self.children())),
            'this client': time.process_time(),
        }

    def stop(self) -> int:
        """Ends it; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(') ')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


class Connection(asyncio.Protocol):
    """A connection that stays open, and has at most one request at a time. It costs a third of a stream."""

    def __init__(self) -> None:
        self.open = True
        self._buffer = bytearray()
        self._reply: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: Any) -> None:
        """Keeps what writes."""
        self._transport: asyncio.Transport = transport

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Sends a request; the future status and content of its reply."""
        self._reply = asyncio.get_running_loop().create_future()
        if self.open:
            self._transport.write(request)
        else:
            self._end()
        return self._reply

    def close(self) -> None:
        """Ends it."""
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Collects a reply."""
        self._buffer += data
        start = self._buffer.find(b'\r\n\r\n') + 4
        if start < 4 or self._reply is None or self._reply.done():
            return
        head = bytes(self._buffer[:start]).lower()
        end = start + int(head.partition(b'content-length: ')[2].partition(b'\r\n')[0])
        if len(self._buffer) >= end:
            self._reply.set_result((int(head.split(b' ', 2)[1]), bytes(self._buffer[start:end])))
            self._buffer.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends what waits for a reply."""
        self.open = False
        self._end()

    def _end(self) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(ConnectionResetError())


class Client:
    """A client that keeps connections open and sends requests without waiting for those before."""

    def __init__(self, port: int, body: bytes) -> None:
        self._port, self._body = port, body
        self._idle: list[Connection] = []
        self._open = 0
        self.unsent = 0

    async def ask(self, query: str = '') -> Reply:
        """Sends a request; its answer."""
        sent = time.perf_counter()
        head = (
            f'POST /v1/predict?top=1&{query} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-npy\r\n'
            f'Content-Length: {len(self._body)}\r\n\r\n'
        )
        connection = self._idle_connection()
        if connection is None and self._open >= MOST_CONNECTIONS:
            self.unsent += 1
            return Reply(sent, 0, 0.0, None, None)
        try:
            if connection is None:
                self._open += 1
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(Connection, '127.0.0.1', self._port)
            status, content = await connection.ask(head.encode() + self._body)
        except OSError:
            self._open -= 1
            return Reply(sent, 0, time.perf_counter() - sent, None, None)
        seconds = time.perf_counter() - sent
        self._idle.append(connection)
        result = json.loads(content)['results'][0] if status == 200 else {}
        return Reply(sent, status, seconds, result.get('stitch'), result.get('top1'))

    def leave(self) -> None:
        """Closes the connections that no request uses."""
        while (connection := self._idle_connection()) is not None:
            connection.close()
            self._open -= 1

    def _idle_connection(self) -> Connection | None:
        """A connection that is open and idle; the service closes those that were idle for long."""
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
            self._open -= 1
        return None

    async def send(self, moments: np.ndarray, query: str = '') -> list[Reply]:
        """Sends a request at each moment, in seconds from now."""
        begin, tasks = time.perf_counter(), []
        for moment in moments:
            if (left := begin + moment - time.perf_counter()) > 0:
                await asyncio.sleep(left)
            tasks.append(asyncio.create_task(self.ask(query)))
        return await asyncio.gather(*tasks)


class Bench:
    """The measurements, one after the other on one service."""

    def __init__(
        self,
        server: Server,
        net: snnet.StitchableNet,
        deadline_ms: float,
        seconds: float,
        seed: int,
        sleep: bool = False,
    ) -> None:
        self.server, self.net, self.seconds, self.seed, self.sleep = server, net, seconds, seed, sleep
        self.deadline = deadline_ms / 1000
        self.image = torch.zeros(net.input_size)
        file = io.BytesIO()
        np.save(file, self.image.numpy())
        self.client = Client(server.port, file.getvalue())
        described = server.get('/v1/stitches')['models'][0]
        top1 = {stitch['stitch']: stitch['top1'] for stitch in described['stitches']}
        self.choices = Choices(
            Choice(row['stitch'], top1[row['stitch']], (0.0, *(ms / 1000 for ms in row['batch_ms'])))
            for row in described['choices']
        )
        self.capacity = self.choices.rate(0, self.deadline / 2)

    def measure_capacity(self) -> World:
        """Sets the capacity to that of a loop on batches now, since the speed of machines drifts by up to half.

        A request may have to wait for one batch before its own, so the batches take at most half of the deadline.

        Returns:
            How batches differ from the tables now.
        """
        if self.sleep:  # its tables always hold
            self.capacity = self.choices.capacity
            return World()
        row = self.choices.fast[0]
        size = max(1, sum(second <= self.deadline / 2 for second in row[1:]))
        times = self.bare_times(self.choices.choices[0].stitch, size, 1.0)
        self.capacity = size / statistics.median(times)
        return World(size / row[size] / self.capacity, spread=float(np.std(np.log(times))))

    def bare(self, stitch: int, batch: int, seconds: float) -> float:
        """Median seconds of a call of the net in this process."""
        return statistics.median(self.bare_times(stitch, batch, seconds))

    def bare_times(self, stitch: int, batch: int, seconds: float) -> list[float]:
        """Seconds of each call of the net in this process."""
        images, times = torch.stack([self.image] * batch), list[float]()
        with torch.inference_mode():
            end = time.perf_counter() + seconds
            while time.perf_counter() < end or len(times) < 20:
                begin = time.perf_counter()
                self.net(images, stitch=stitch)
                times.append(time.perf_counter() - begin)
        return times

    async def overhead(self) -> str:
        """What a request takes beside the bare call."""
        stitch, gaps = self.choices.choices[0].stitch, []
        for _ in range(5):  # in turn, since the machine's speed drifts
            bare = self.bare(stitch, 1, self.seconds / 20)
            times = [(await self.client.ask(f'stitch={stitch}&deadline_ms=10000')).seconds for _ in range(100)]
            gaps.append(statistics.median(times) - bare)
        low, middle, high = (1000 * gap for gap in (min(gaps), statistics.median(gaps), max(gaps)))
        return f'{middle:.2f} ms (median of 5 pairs, {low:.2f} to {high:.2f})'

    async def throughput(self) -> str:
        """Requests per second in full batches, as a share of a loop that calls the net on full batches."""
        choice = self.choices.choices[0]
        most = self.choices.most
        bare = most / self.bare(choice.stitch, most, self.seconds / 4)
        end = time.perf_counter() + self.seconds
        counts = [0]

        async def flood() -> None:
            while time.perf_counter() < end:
                reply = await self.client.ask(f'stitch={choice.stitch}&deadline_ms=20000')
                counts[0] += reply.status == 200

        await asyncio.gather(*(flood() for _ in range(4 * most)))
        rate = counts[0] / self.seconds
        return f'{100 * rate / bare:.1f} % ({rate:.0f} of {bare:.0f} images per second)'

    async def load(self, load: float) -> str:
        """Attainment and accuracy at a load, beside the best fixed stitch and the simulator at the same arrivals."""
        world = self.measure_capacity()
        before, rate = self.capacity, load * self.capacity
        moments = draw_arrivals('poisson', rate, self.seconds, self.seed)
        replies = await self.client.send(moments)
        attained, top1 = self.in_time(replies)
        late = sum(r.status == 200 and r.seconds > self.deadline for r in replies)
        simulated = simulate(self.choices, moments, self.deadline, world)
        fixed, share = await self.best_fixed(moments, attained)
        self.measure_capacity()
        return (
            f'{attained:.2f} % in time with a mean top-1 of {top1:.2f} (smallest {self.choices.choices[0].top1:.2f}, '
            f'best fixed {fixed.top1:.2f} with {share:.2f} %, simulator {simulated.attainment:.2f} % with '
            f'{simulated.accuracy:.2f}); {len(replies)} requests at {rate:.0f} per second, {late} late; capacity '
            f'{before:.0f} before and {self.capacity:.0f} after'
        )

    def in_time(self, replies: list[Reply]) -> tuple[float, float]:
        """The percentage answered in time, and the mean accuracy of these answers."""
        right = [r.top1 or 0.0 for r in replies if r.status == 200 and r.seconds <= self.deadline]
        return 100 * len(right) / len(replies), statistics.fmean(right) if right else float('nan')

    async def best_fixed(self, moments: np.ndarray, attained: float) -> tuple[Choice, float]:
        """The most accurate stitch that, alone, answers as many of these arrivals in time; the fastest if none does."""
        found = self.choices.choices[0], float('nan')
        low, high = 0, len(self.choices) - 1
        while low <= high:
            middle = (low + high) // 2
            choice = self.choices.choices[middle]
            share, _ = self.in_time(await self.client.send(moments, f'stitch={choice.stitch}'))
            if share >= min(attained, 100 * ATTAINMENT):
                found, low = (choice, share), middle + 1
            else:
                high = middle - 1
        return found

    async def overload(self) -> str:
        """Goodput and refusals at twice the capacity, and the recovery behind it."""
        calm, world = 5.0, self.measure_capacity()
        flood = draw_arrivals('poisson', 2 * self.capacity, self.seconds, self.seed)
        after = self.seconds + draw_arrivals('poisson', 0.3 * self.capacity, calm, self.seed)
        replies = await self.client.send(np.concatenate([flood, after]))
        crowd, rest = replies[: len(flood)], replies[len(flood) :]
        in_time = sum(r.status == 200 and r.seconds <= self.deadline for r in crowd)
        alone = simulate(self.choices.only(0), flood, self.deadline, world).attainment
        refused = sorted(1000 * r.seconds for r in crowd if r.status == 429)
        fast = [refused[int(share * (len(refused) - 1))] for share in (0.5, 0.99)] if refused else [0.0, 0.0]
        failed = np.array([r.status != 200 or r.seconds > self.deadline for r in rest])
        left = np.cumsum(failed[::-1])[::-1] > ALLOWED * len(rest)  # too many fail from here on
        recovery = (rest[int(left.nonzero()[0][-1])].sent - rest[0].sent) / self.deadline if left.any() else 0.0
        return (
            f'{100 * in_time / len(crowd):.1f} % in time, always-smallest {alone:.1f} % in the simulator; '
            f'refusals take {fast[0]:.1f} ms (99 %: {fast[1]:.1f}); recovery {recovery:.1f} deadlines'
        )

    async def soak(self, minutes: float, loads: list[float]) -> str:
        """Memory by process, threads and files at a mixed load, and behind it."""
        rows, statuses, end = list[tuple[float, dict[str, Held]]](), Counter[int](), time.monotonic() + 60 * minutes
        begin = self.server.held()
        while time.monotonic() < end:
            for load in loads:
                arrivals = draw_arrivals('bursts', load * self.capacity, 5.0, self.seed, period=1.0)
                statuses.update(reply.status for reply in await self.client.send(arrivals))
                rows.append((time.monotonic() / 60, self.server.held()))
        self.client.leave()
        await asyncio.sleep(CALM)
        quarter, half = rows[len(rows) // 4 :], rows[len(rows) // 2 :]  # allocators grow at first
        moments = (begin, quarter[0][1], rows[-1][1], self.server.held())
        before, first, last, after = (Held.sum(held.values()) for held in moments)
        left = ', '.join(f'{name} {held.megabytes:.0f} MB' for name, held in moments[-1].items())
        return (
            f'MB a minute after a quarter: {growths(quarter)}; in the second half: {growths(half)}; threads and files '
            f'{before.threads} and {before.files} at the start, {first.threads} and {first.files} after a quarter, '
            f'{last.threads} and {last.files} at the end; {CALM:g} s after the client has left {after.threads} and '
            f'{after.files}, and {left}; requests by status {dict(sorted(statuses.items()))}'
        )


def growths(rows: Sequence[tuple[float, dict[str, Held]]]) -> str:
    """How fast the memory of each process grows, and that of all, from moments in minutes and what was held then."""
    moments = np.array([minute for minute, _ in rows])
    sizes = {name: np.array([held[name].megabytes for _, held in rows]) for name in rows[0][1]}
    sizes['all'] = sum(sizes.values(), np.zeros(len(rows)))
    return ', '.join(f'{name} {growth(moments, size)}' for name, size in sizes.items())


def growth(minutes: np.ndarray, megabytes: np.ndarray) -> str:
    """The slope of a line through memory over time, its standard error, and the mean, least and most memory.

    What an allocator has got, it keeps for a while, so a deviation from the line resembles the one before, and counts
    for less than one that stands alone. The error is that of deviations of which each keeps a share of the one before.
    """
    x, y = minutes - minutes.mean(), megabytes - megabytes.mean()
    slope = (x @ y) / (x @ x)
    rest = y - slope * x
    kept = min(0.99, max(0.0, float(rest[1:] @ rest[:-1] / (rest @ rest)))) if rest.any() else 0.0
    error = float(np.sqrt(rest @ rest / max(1, len(x) - 2) / (x @ x) * (1 + kept) / (1 - kept)))
    least, mean, most = megabytes.min(), megabytes.mean(), megabytes.max()
    return f'{slope:+.3f} (standard error {error:.3f}) at {mean:.0f} MB ({least:.0f} to {most:.0f})'


def rows_of(bench: Bench, args: argparse.Namespace) -> dict[str, Callable[[], Awaitable[str]]]:
    """What is asked for, by what the table calls it."""
    minutes: float = args.soak_minutes
    rows: dict[str, dict[str, Callable[[], Awaitable[str]]]] = {
        'overhead': {'overhead of a request beside the bare call': bench.overhead},
        'throughput': {'throughput in full batches of the cheapest stitch': bench.throughput},
        'load': {f'load {load:g}': partial(bench.load, load) for load in args.loads},
        'overload': {'twice the capacity': bench.overload},
        'soak': {f'{minutes:g} minutes of loads {args.soak_loads}': partial(bench.soak, minutes, args.soak_loads)},
    }
    return {title: row for name in args.measure for title, row in rows[name].items()}


async def measure(bench: Bench, rows: dict[str, Callable[[], Awaitable[str]]]) -> None:
    """Prints the table, a line when it is there, and the share of a core that each process took meanwhile."""
    print('| what | measured | cores |\n|---|---|---|', flush=True)
    for what, measured in rows.items():
        before, begin = bench.server.cpu(), time.perf_counter()
        line = await measured()
        seconds, after = time.perf_counter() - begin, bench.server.cpu()
        cores = ', '.join(f'{who} {(after[who] - before[who]) / seconds:.2f}' for who in after)
        print(f'| {what} | {line} | {cores} |', flush=True)


def main() -> None:
    """Starts a service, measures and prints."""
    parser = argparse.ArgumentParser(description='Measures a service on this machine.')
    parser.add_argument('--net', type=Path, help='folder of an evaluated net')
    parser.add_argument('--anchors', default=ANCHORS, help='without --net: names of timm, given random weights')
    parser.add_argument('--plugin', nargs='*', default=[], help='Python files that register its networks')
    parser.add_argument('--deadline-ms', type=float, default=50.0)
    parser.add_argument('--seconds', type=float, default=20.0, help='length of each measurement')
    parser.add_argument('--loads', type=float, nargs='+', default=[0.3, 0.6, 0.8])
    parser.add_argument('--measure', nargs='+', choices=MEASUREMENTS, default=MEASUREMENTS[:-1])
    parser.add_argument('--soak-minutes', type=float, default=30.0)
    parser.add_argument('--soak-loads', type=float, nargs='+', default=[0.2, 0.8, 1.5])
    parser.add_argument('--sleep', action='store_true', help='the net sleeps instead of computing')
    parser.add_argument('--pin', action='store_true', help='one core computes, the others do the rest')
    parser.add_argument('--seed', type=int, default=2026)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = args.net or make_net(args.anchors, Path(folder) / 'net')
        more = ['--plugin', *args.plugin] if args.plugin else []
        if more:
            from snnet.utils.plugins import import_plugins

            import_plugins(args.plugin)
        net = snnet.StitchableNet.from_pretrained(path).eval().requires_grad_(False)
        server = Server.start(path, args.deadline_ms, more, args.sleep)
        try:
            if args.pin:
                server.pin()
            bench = Bench(server, net, args.deadline_ms, args.seconds, args.seed, args.sleep)
            print(f'{len(bench.choices)} stitches, batches up to {bench.choices.most}, the cheapest answers '
                  f'{bench.capacity:.0f} images per second; deadline {args.deadline_ms:g} ms')  # fmt: skip
            uvloop.run(measure(bench, rows_of(bench, args)))
        finally:
            print('the service ended with', server.stop())


if __name__ == '__main__':
    main()
