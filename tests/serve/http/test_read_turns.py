"""A turn of the event loop reads a few requests, and writes replies before it reads more."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from urllib.parse import urlsplit

from snnet.serve.http.read_turns import IDLE, MOST, ReadTurns
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


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_requests_that_are_there_at_the_same_time_have_the_same_age():
    clock, loop = Clock(), Turns()
    turns = ReadTurns(clock=clock)
    assert turns.moment(loop) == 0
    clock.now = 0.01  # the first one was read
    assert turns.moment(loop) == 0


def test_what_a_loop_that_works_finds_may_have_been_there_since_its_last_look():
    clock, loop = Clock(), Turns()
    turns = ReadTurns(clock=clock)
    turns.moment(loop)
    loop.run()  # before it looks for data again, it answers for 10 ms what it has read
    clock.now = 0.01
    assert turns.moment(loop) == 0
    loop.run()
    clock.now = 0.03
    assert turns.moment(loop) == 0.01


def test_what_a_loop_that_waits_finds_was_not_there_before():
    clock, loop = Clock(), Turns()
    turns = ReadTurns(clock=clock)
    turns.moment(loop)
    while loop.calls:
        loop.run()
        clock.now += IDLE / 2
    clock.now = 7.0
    assert turns.moment(loop) == 7.0


def test_what_comes_while_replies_are_written_is_as_old_as_the_first_of_them():
    clock, loop = Clock(), Turns()
    turns = ReadTurns(clock=clock)
    clock.now = 5.0
    turns.worked(loop)
    clock.now = 5.004
    turns.worked(loop)
    clock.now = 5.008
    assert turns.moment(loop) == 5.0
    loop.run()
    loop.run()
    clock.now = 5.1
    turns.moment(loop)
    clock.now = 5.2
    loop.run()
    assert turns.moment(loop) == 5.1


def test_a_few_begin_in_a_turn_and_of_the_others_the_newest_come_first_with_one_of_the_oldest():
    turns, loop, read = ReadTurns(most=3, clock=Clock()), Turns(), []
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
    loop.run()  # it has looked once more
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
