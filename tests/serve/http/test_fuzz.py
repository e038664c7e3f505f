"""Malformed requests by the hundred: no crash, no 500, and the next good request is answered."""

from __future__ import annotations

import json
import random
import struct
import zlib

import numpy as np
import pytest

from snnet.serve.http.http_limits import HttpLimits
from tests.helpers.served import client_of, npy, picture

LIMITS = HttpLimits(max_body_mb=0.2, max_pixels=1_000_000, max_images=4)
GOOD = {'PNG': picture(), 'JPEG': picture('JPEG'), 'WEBP': picture('WEBP'), 'npy': npy(np.zeros((3, 32, 32), 'f4'))}
KINDS = (
    'image/png', 'image/jpeg', 'image/webp', 'application/octet-stream', 'application/x-npy', 'text/plain', '',
    'multipart/form-data', 'multipart/form-data; boundary=b', 'multipart/form-data; boundary="', 'application/json',
)  # fmt: skip
VALUES = (
    '', '-1', '0', 'nan', 'inf', '-inf', '1e999', '9' * 500, '\u0663', 'true', '[]', '{}', '1;drop', '%00', '\x00',
    'None', '1e-9',
)  # fmt: skip
NAMES = ('deadline_ms', 'min_top1', 'flops', 'stitch', 'top', 'model', 'other', '')


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG of few bytes that says it has 3.6 billion pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

    header = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', zlib.compress(bytes(100_000))) + chunk(b'IEND', b'')


def damaged(data: bytes, draw: random.Random) -> bytes:
    way = draw.randrange(5)
    if way == 0:
        return data[: draw.randrange(len(data))]
    if way == 1:
        return data + draw.randbytes(draw.randrange(1, 100))
    mutable = bytearray(data)
    for _ in range(draw.randrange(1, 20)):
        mutable[draw.randrange(len(mutable))] = draw.randrange(256)
    if way == 2:
        return bytes(mutable)
    cut = sorted(draw.randrange(len(data)) for _ in range(2))
    return data[: cut[0]] + data[cut[1] :] if way == 3 else data[: cut[1]] + data[cut[0] :]


def form(draw: random.Random) -> bytes:
    parts = []
    for _ in range(draw.randrange(8)):
        name = draw.choice([*NAMES, 'image', 'x"y', 'x' * 9000])
        file = draw.choice(['', '; filename="a.png"', '; filename=', "; filename*=utf-8''%ff"])
        content = draw.choice([*GOOD.values(), *(value.encode() for value in VALUES), b'\xff\xfe'])
        head = f'--b\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        parts.append(head + content + b'\r\n')
    return b''.join(parts) + draw.choice([b'--b--\r\n', b'', b'--b', b'--c--\r\n'])


def tree(draw: random.Random, depth: int = 0) -> object:
    way = draw.randrange(9 if depth < 4 else 6)
    leaves = [None, True, draw.random() * 10 ** draw.randrange(-300, 300), draw.choice(VALUES), 10**400, -1]
    if way < 6:
        return leaves[way]
    if way < 8:
        return [tree(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {draw.choice(NAMES): tree(draw, depth + 1) for _ in range(draw.randrange(4))}


def infer_body(draw: random.Random) -> tuple[bytes, dict[str, str]]:
    tensor = {'name': 'images', 'datatype': 'FP32', 'shape': [1, 3, 32, 32], 'data': [0.0] * 3072}
    body = {'inputs': [tensor], 'outputs': [{'name': 'logits'}], 'parameters': {}, 'id': 'a'}
    table = draw.choice([body, tensor, body['outputs'][0]])
    table[draw.choice([*table, 'x'])] = tree(draw)
    if draw.random() < 0.3:
        tensor.pop('data', None)
        tensor['parameters'] = {'binary_data_size': draw.choice([0, -1, 12288, 10**30, None, 'x'])}
    data = json.dumps(body).encode()
    headers = {}
    if draw.random() < 0.3:
        headers['Inference-Header-Content-Length'] = draw.choice([str(len(data)), *VALUES[:8]])
        data += draw.randbytes(draw.choice([0, 5, 12288]))
    return (damaged(data, draw) if draw.random() < 0.3 else data), headers


def malformed(draw: random.Random) -> tuple[str, bytes, dict[str, str]]:
    """A path, a body and headers."""
    if draw.random() < 0.35:
        body, headers = infer_body(draw)
        return draw.choice(['/v2/models/tiny/infer', '/v2/models/tiny/versions/1/infer']), body, headers
    query = '&'.join(f'{draw.choice(NAMES)}={draw.choice(VALUES)}' for _ in range(draw.choice([0, 0, 0, 1, 2])))
    broken = damaged(draw.choice([*GOOD.values()]), draw)
    body = draw.choice([broken, form(draw), draw.randbytes(50), bomb(), b'[' * 10_000])
    headers = {'Content-Type': draw.choice(KINDS)}
    if draw.random() < 0.1:
        headers[draw.choice(['Content-Encoding', 'Authorization', 'X-API-Key'])] = draw.choice(['gzip', 'br', 'Bearer'])
    return f'/v1/predict?{query}', body, headers


def attack(count: int, seed: int) -> dict[int, int]:
    """How many of so many malformed requests got which status."""
    draw, statuses = random.Random(seed), dict[int, int]()
    with client_of(limits=LIMITS) as client:
        for number in range(count):
            path, body, headers = malformed(draw)
            path = path.encode('utf-8', 'replace').decode('latin-1').replace('\x00', '%00')
            reply = client.post(path, content=body, headers=headers)
            statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
            assert reply.status_code < 500, f'seed {seed}, request {number}: {path[:200]} {headers} {reply.text[:300]}'
            assert reply.status_code == 200 or reply.json()['error'], number
        assert client.post('/v1/predict', content=GOOD['PNG'], headers={'Content-Type': 'image/png'}).status_code == 200
        assert client.service.worker.unanswered == 0
        assert client.service.worker.lost == 0
    return statuses


def test_a_hundred_malformed_requests_are_refused_one_by_one():
    statuses = attack(100, seed=0)
    assert {413, 415, 422} <= set(statuses)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(1, 5))
def test_ten_thousand_malformed_requests_are_refused_one_by_one(seed):
    attack(2500, seed)
