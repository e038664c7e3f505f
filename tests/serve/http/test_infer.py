from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from snnet.serve.http.http_limits import HttpLimits
from tests.helpers.served import client_of

PATH = '/v2/models/tiny/infer'
SHAPE = (2, 3, 32, 32)


@pytest.fixture(scope='module')
def client():
    with client_of(limits=HttpLimits(max_images=4)) as client:
        yield client


def images(dtype: str = 'float32') -> np.ndarray:
    return np.random.default_rng(0).standard_normal(SHAPE).astype(dtype)


def request(**changes) -> dict:
    tensor = {'name': 'images', 'datatype': 'FP32', 'shape': [*SHAPE], 'data': images().tolist()}
    return {'inputs': [{**tensor, **changes}]}


def expected(client, stitch: int) -> torch.Tensor:
    with torch.inference_mode():
        return client.service.net(None).net(torch.from_numpy(images()), stitch=stitch)


def test_logits_of_tensors_in_json_are_those_of_the_net(client):
    reply = client.post(PATH, json={'id': 'mine', 'parameters': {'stitch': 3}, **request()})
    assert reply.status_code == 200
    answer = reply.json()
    logits, stitch = answer['outputs']
    assert (answer['model_name'], answer['model_version'], answer['id']) == ('tiny', '1', 'mine')
    assert (logits['name'], logits['datatype'], logits['shape']) == ('logits', 'FP32', [2, 7])
    assert (stitch['datatype'], stitch['data']) == ('INT64', [3, 3])
    torch.testing.assert_close(torch.tensor(logits['data']).reshape(2, 7), expected(client, 3), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(('kind', 'dtype'), [('FP16', 'float16'), ('FP32', 'float32'), ('FP64', 'float64')])
def test_tensors_may_be_bytes_in_both_directions(client, kind, dtype):
    data = images(dtype).tobytes()
    tensor = {'name': 'images', 'datatype': kind, 'shape': [*SHAPE], 'parameters': {'binary_data_size': len(data)}}
    outputs = [{'name': 'logits', 'parameters': {'binary_data': True}}]
    head = json.dumps({'inputs': [tensor], 'outputs': outputs, 'parameters': {'stitch': 3}}).encode()
    reply = client.post(PATH, content=head + data, headers={'Inference-Header-Content-Length': str(len(head))})
    assert reply.status_code == 200
    length = int(reply.headers['inference-header-content-length'])
    (output,) = json.loads(reply.content[:length])['outputs']
    assert output['parameters'] == {'binary_data_size': 2 * 7 * 4}
    logits = torch.from_numpy(np.frombuffer(reply.content[length:], '<f4').copy().reshape(2, 7))
    tolerance = 2e-2 if kind == 'FP16' else 1e-5  # the images themselves are rounded
    torch.testing.assert_close(logits, expected(client, 3), rtol=tolerance, atol=tolerance)


def test_metadata_and_health(client):
    assert client.get('/v2').json()['extensions'] == ['binary_tensor_data']
    for path in ('/v2/health/live', '/v2/health/ready', '/v2/models/tiny/ready', '/v2/models/tiny/versions/1/ready'):
        assert client.get(path).status_code == 200
    about = client.get('/v2/models/tiny').json()
    assert about == client.get('/v2/models/tiny/versions/1').json()
    assert about['inputs'] == [{'name': 'images', 'datatype': 'FP32', 'shape': [-1, 3, 32, 32]}]
    assert [output['name'] for output in about['outputs']] == ['logits', 'stitch']
    for path in ('/v2/models/other', '/v2/models/tiny/versions/2', '/v2/models/other/ready'):
        reply = client.get(path)
        assert reply.status_code == 404
        assert isinstance(reply.json()['error'], str)


def test_the_timeout_of_clients_is_a_deadline(client):
    reply = client.post(PATH, json={'parameters': {'timeout': 1}, **request()})
    assert reply.status_code == 422
    assert 'a deadline of 0.001 ms: the fastest takes' in reply.json()['error']


@pytest.mark.parametrize(
    ('body', 'told'),
    [
        ([], 'not a table'),
        ({}, "'inputs' of a request is a list"),
        ({'inputs': []}, "one input, named 'images'"),
        ({'inputs': [5]}, "one input, named 'images'"),
        (request(name='x'), "one input, named 'images'"),
        (request(datatype='INT8'), "FP64, not 'INT8'"),
        (request(datatype=[]), 'FP64, not'),
        (request(shape='x'), 'the shape of an input is a list'),
        (request(shape=[-1, 3]), 'the shape of an input is a list'),
        (request(shape=[True]), 'the shape of an input is a list'),
        (request(shape=[2, 3]), 'a tensor of shape [2, 3] has 6 values, not 6144'),
        (request(data='x'), 'the data of an input are numbers'),
        (request(data=[[1], [1, 2]]), 'the data of an input are numbers'),
        (request(data=[10**400]), 'the data of an input are numbers'),
        (request(data={}), 'the data of an input are numbers'),
        (request(shape=[1], data=[1]), 'images have the shape'),
        (request(shape=[0, 3, 32, 32], data=[]), 'images have the shape'),
        (request(shape=[8, 3, 32, 32], data=[0] * 8 * 3072), 'at most 4 images'),
        ({'inputs': [{'name': 'images', 'datatype': 'FP32', 'shape': [1]}]}, 'binary_data_size, which is 0'),
        ({**request(), 'outputs': [{'name': 'x'}]}, "outputs are 'logits' and 'stitch'"),
        ({**request(), 'outputs': [{'name': 'logits', 'parameters': {'classification': 3}}]}, "'binary_data'"),
        ({**request(), 'outputs': 5}, "'outputs' of a request is a list"),
        ({**request(), 'parameters': {'sequence_id': 3}}, 'parameters are deadline_ms'),
        ({**request(), 'parameters': {'deadline_ms': 'soon'}}, "deadline_ms is a number, not 'soon'"),
        ({**request(), 'parameters': {'deadline_ms': True}}, 'deadline_ms is a number'),
        ({**request(), 'parameters': {'timeout': -5}}, 'timeout is a number of microseconds'),
        ({**request(), 'parameters': []}, "'parameters' of a request is a table"),
        ({**request(), 'id': 5}, "'id' of a request is a text"),
    ],
)
def test_requests_that_cannot_be_are_refused_in_a_sentence(client, body, told):
    reply = client.post(PATH, content=json.dumps(body))
    assert reply.status_code in (413, 422)
    assert told in reply.json()['error']


@pytest.mark.parametrize(
    ('body', 'told'),
    [
        (b'', 'not valid JSON'),
        (b'{' * 100_000, 'not valid JSON'),
        (b'[' * 100_000, 'not valid JSON'),
        (b'{"inputs": ' + b'9' * 10_000 + b'}', 'not valid JSON'),
        (b'\xff\xfe', 'not valid JSON'),
        (json.dumps(request()).encode().replace(b'[[[[', b'[[[[NaN,', 1).replace(b',', b'', 1), 'not valid JSON'),
    ],
)
def test_bodies_that_are_not_json_are_refused(client, body, told):
    reply = client.post(PATH, content=body)
    assert reply.status_code == 422
    assert told in reply.json()['error']


def test_values_that_are_not_finite_are_refused(client):
    data = images().tolist()
    data[0][0][0][0] = float('nan')
    assert 'finite' in client.post(PATH, content=json.dumps(request(data=data))).json()['error']
    data[0][0][0][0] = 1e300  # beyond float32
    assert 'finite' in client.post(PATH, content=json.dumps(request(data=data))).json()['error']


@pytest.mark.parametrize('length', ['x', '-1', '99999', '9' * 30])
def test_a_wrong_length_of_the_json_is_refused(client, length):
    reply = client.post(PATH, content=b'{}', headers={'Inference-Header-Content-Length': length})
    assert reply.status_code == 422
    assert 'cannot have a length of' in reply.json()['error']
