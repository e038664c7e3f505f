"""A turn of the event loop reads a few requests, and writes replies before it reads more."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack
from urllib.parse import urlsplit

from snnet.serve.http.read_turns import MOST, ReadTurns
from tests.helpers.served import live


class Connection:
    """A reader that notes in which order it and others are read."""

    def __init__(self, number: int, read: list[int]) -> None:
        self.number, self.read = number, read

    def read_held(self) -> None:
        self.read.append(self.number)


class Turns:
    """Stands in for an event loop: what is called soon is called in the next turn."""

    def __init__(self) -> None:
        self.calls = []

    def call_soon(self, call, *args) -> None:
        self.calls.append((call, args))

    def run(self) -> None:
        calls, self.calls = self.calls, []
        for call, args in calls:
            call(*args)


def test_requests_that_are_there_at_the_same_time_have_the_same_age():
    times = iter(range(100))

    async def moments() -> list[float]:
        turns, loop, found = ReadTurns(clock=lambda: next(times)), asyncio.get_running_loop(), []
        for _ in range(3):
            loop.call_soon(lambda: found.append(turns.moment(loop)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        found.append(turns.moment(loop))
        return found

    assert asyncio.run(moments()) == [0, 0, 0, 1]


def test_a_few_begin_in_a_turn_and_of_the_others_the_newest_come_first_with_one_of_the_oldest():
    turns, loop, read = ReadTurns(most=3), Turns(), []
    begun = [turns.may_begin(Connection(number, read), loop) for number in range(9)]
    assert begun == 3 * [True] + 6 * [False]
    assert read == []
    loop.run()
    assert read == [3, 8, 7]
    assert not turns.may_begin(Connection(9, read), loop)  # those that waited have taken this turn
    loop.run()
    assert read[3:] == [4, 9, 6]
    loop.run()
    assert read[6:] == [5]
    assert turns.may_begin(Connection(10, read), loop)
    loop.run()
    assert not loop.calls  # nothing waits, so no turn is asked for
    assert len(read) == 7


def test_more_requests_at_a_time_than_a_turn_reads_are_all_answered():
    with live() as url, ExitStack() as closing:
        address = urlsplit(url).hostname, urlsplit(url).port
        connections = [closing.enter_context(socket.create_connection(address, 10)) for _ in range(4 * MOST)]
        for path in (b'/healthz', b'/readyz'):
            for connection in connections:
                connection.send(b'GET ' + path + b' HTTP/1.1\r\nHost: x\r\n\r\n')
            for connection in connections:
                assert connection.recv(65536).startswith(b'HTTP/1.1 200 OK')
