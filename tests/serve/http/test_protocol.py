"""What only a real socket shows: slow headers, too many connections, clients that go away."""

from __future__ import annotations

import gc
import socket
import time
from contextlib import suppress
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from snnet.serve.http.http_limits import HttpLimits
from tests.helpers.served import live, picture


@pytest.fixture(scope='module')
def address():
    limits = HttpLimits(header_seconds=0.2, body_seconds=0.2, max_connections=3)
    with live(limits=limits) as url:
        yield urlsplit(url).hostname, urlsplit(url).port


def connect(address) -> socket.socket:
    return socket.create_connection(address, timeout=10)


def ended(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    connection.close()
    return b''.join(parts)


def refused_unread(length: int) -> bytes:
    """The head of a request that is refused whatever its body."""
    head = 'POST /v1/predict?top=0 HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n'
    return f'{head}Content-Length: {length}\r\n\r\n'.encode()


def test_a_client_whose_headers_are_slow_is_cut_off(address):
    connection = connect(address)
    connection.send(b'GET /healthz HTTP/1.1\r\nHost: x\r\n')
    assert ended(connection) == b''


def test_the_second_request_of_a_connection_has_as_little_time(address):
    connection = connect(address)
    connection.send(b'GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n')
    assert b'200 OK' in connection.recv(65536)
    connection.send(b'GET /healthz HTTP/1.1\r\nHost: x\r\n')
    assert b'HTTP/1.1' not in ended(connection)


def test_a_connection_without_a_request_is_cut_off(address):
    assert ended(connect(address)) == b''


def test_a_client_whose_body_is_slow_gets_422(address):
    connection = connect(address)
    head = b'POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n'
    connection.send(head + picture()[:10])
    assert b'the body was not there after 0.2 s' in ended(connection)


def test_a_client_that_goes_away_in_its_body_harms_nobody(address):
    connection = connect(address)
    connection.send(b'POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\nx')
    connection.close()
    assert urlopen('http://{}:{}/healthz'.format(*address)).status == 200


def test_connections_beyond_the_limit_are_closed(address):
    held = [connect(address) for _ in range(3)]
    for connection in held:
        connection.send(b'GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n')
        assert b'200 OK' in connection.recv(65536)
    assert ended(connect(address)) == b''
    for connection in held:
        connection.close()
    for _ in range(1000):  # the server notices that they are closed
        try:
            assert urlopen('http://{}:{}/healthz'.format(*address)).status == 200
            break
        except OSError:
            time.sleep(0.001)
    else:
        pytest.fail('closed connections still count')


def test_what_is_not_http_is_refused_and_the_service_goes_on(address):
    for junk in (b'\x16\x03\x01\x02\x00' * 20 + b'\r\n\r\n', b'GET / HTTP\r\n\r\n', b'G' * 100_000):
        connection = connect(address)
        connection.sendall(junk)
        assert not ended(connection).startswith(b'HTTP/1.1 2')
    assert urlopen('http://{}:{}/healthz'.format(*address)).status == 200


@pytest.mark.parametrize('line', [b'X-Long: ' + b'a' * 400_000, b'X-Many: 1\r\n' * 40_000])
def test_headers_without_end_are_cut_off_before_their_time_is_up(line):
    with live(limits=HttpLimits(header_seconds=60)) as url:
        address = urlsplit(url).hostname, urlsplit(url).port
        connection = connect(address)
        with suppress(OSError):  # it closes while this still sends
            connection.sendall(b'GET /healthz HTTP/1.1\r\n' + line)
        assert not ended(connection).startswith(b'HTTP/1.1 2')


def test_the_rest_of_a_body_that_was_refused_is_no_header(address):
    connection = connect(address)
    connection.sendall(refused_unread(300_000) + bytes(10))
    assert b'HTTP/1.1 422' in connection.recv(65536)
    connection.sendall(bytes(299_990) + b'GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n')
    assert b'200 OK' in ended(connection)


def test_a_connection_keeps_no_body_that_was_refused_unread(address):
    connection = connect(address)
    connection.sendall(refused_unread(50_000) + bytes(50_000))
    assert b'HTTP/1.1 422' in connection.recv(65536)
    for _ in range(100):  # the reply can be here before the server has done the rest
        cycles = [found for found in gc.get_objects() if type(found).__name__ == 'RequestResponseCycle']
        assert cycles
        if not any(cycle.body for cycle in cycles):
            break
        time.sleep(0.01)
    assert not any(cycle.body for cycle in cycles)
    connection.close()


def test_a_request_behind_one_that_was_refused_unread_keeps_its_body(address):
    connection = connect(address)
    data = picture()
    head = 'POST /v1/predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: image/png\r\n'
    behind = f'{head}Content-Length: {len(data)}\r\n\r\n'.encode() + data
    connection.sendall(refused_unread(1000) + bytes(1000) + behind)
    replies = ended(connection)
    assert replies.startswith(b'HTTP/1.1 422')
    assert b'HTTP/1.1 200' in replies


def test_a_connection_that_has_ended_is_freed_at_once(address):
    def count() -> int:
        return sum(type(found).__name__ == 'LimitedProtocol' for found in gc.get_objects())

    gc.collect()
    before = count()
    gc.disable()
    try:
        for _ in range(3):
            assert urlopen('http://{}:{}/healthz'.format(*address)).status == 200
            connect(address).close()
        for _ in range(1000):
            if count() <= before:
                break
            time.sleep(0.005)
        assert count() <= before
    finally:
        gc.enable()
