from __future__ import annotations

import json

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from snnet.serve.http.http_limits import HttpLimits
from snnet.serve.service.refusal import Refusal
from snnet.serve.service.service import ServicePlan
from tests.helpers.served import client_of, npy, picture, tiny_net

PNG = {'Content-Type': 'image/png'}
NPY = {'Content-Type': 'application/x-npy'}


@pytest.fixture(scope='module')
def client():
    with client_of(limits=HttpLimits(max_body_mb=0.5, max_pixels=100_000, max_images=4)) as client:
        yield client


def error_of(reply) -> dict:
    assert reply.headers['content-type'] == 'application/json'
    return reply.json()['error']


@pytest.mark.parametrize('format', ['PNG', 'JPEG', 'WEBP'])
def test_an_image_gets_labels_the_stitch_that_answered_its_cost_and_times(client, format):
    reply = client.post('/v1/predict', content=picture(format), headers={'Content-Type': f'image/{format.lower()}'})
    assert reply.status_code == 200
    answer = reply.json()
    (result,) = answer['results']
    assert [p['class'] for p in result['predictions']] != []
    assert sum(p['probability'] for p in result['predictions']) <= 1 + 1e-5
    assert [p['label'] for p in result['predictions']] == [str(p['class']) for p in result['predictions']]
    record = client.service.net(None).records[result['stitch']]
    assert (result['flops'], result['top1'], result['legs']) == (record.flops, record.top1, record.legs)
    assert 0 <= result['waited_ms'] + result['computed_ms'] <= answer['total_ms']
    assert answer['in_time']


def test_several_images_and_options_in_a_form(client):
    files = [('image', ('a.png', picture())), ('image', ('b.jpg', picture('JPEG'))), ('x', ('c', npy(zeros())))]
    reply = client.post('/v1/predict', files=files, data={'top': '2', 'stitch': '3'})
    results = reply.json()['results']
    assert [len(result['predictions']) for result in results] == [2, 2, 2]
    assert {result['stitch'] for result in results} == {3}


def zeros(count: int | None = None) -> np.ndarray:
    size = tiny_net().input_size
    return np.zeros(size if count is None else (count, *size), np.float32)


@pytest.mark.parametrize('array', [zeros(), zeros(3), zeros(2).astype('float64'), np.asfortranarray(zeros(2))])
def test_an_array_is_taken_as_prepared_images(client, array):
    reply = client.post('/v1/predict', content=npy(array), headers=NPY)
    assert len(reply.json()['results']) == (1 if array.ndim == 3 else len(array))


def test_an_array_and_the_image_it_was_prepared_from_get_the_same_answer(client):
    served = client.service.net(None)
    prepared = served.transform(Image.new('RGB', (40, 30), 'red')).numpy()
    one = client.post('/v1/predict?stitch=2', content=picture(), headers=PNG).json()['results'][0]
    two = client.post('/v1/predict?stitch=2', content=npy(prepared), headers=NPY).json()['results'][0]
    assert one['predictions'] == two['predictions']


@pytest.mark.parametrize(
    ('query', 'status', 'told'),
    [
        ('deadline_ms=-1', 422, 'deadline_ms is a positive number'),
        ('deadline_ms=nan', 422, "deadline_ms is a number, not 'nan'"),
        ('deadline_ms=inf', 422, 'positive number of milliseconds, not inf'),
        ('deadline_ms=1e9', 422, 'at most 60000'),
        ('deadline_ms=0.0001', 422, 'the fastest takes'),
        ('deadline_ms=50&deadline_ms=60', 422, 'deadline_ms is given twice'),
        ('min_top1=100', 422, 'the best stitch that may answer has'),
        ('flops=1', 422, 'the cheapest needs'),
        ('flops=1e9&stitch=1', 422, 'not both'),
        ('stitch=1.5', 422, 'stitch is an integer'),
        ('stitch=9999', 422, 'stitch ids are 0 to'),
        ('top=0', 422, 'top is an integer of at least 1'),
        ('top=9999', 422, 'top is at most 1000'),
        ('deadline=5', 422, 'did you mean deadline_ms'),
        ('model=other', 404, "no net 'other', only tiny"),
    ],
)
def test_options_that_cannot_be_are_refused_in_a_sentence(client, query, status, told):
    reply = client.post(f'/v1/predict?{query}', content=picture(), headers=PNG)
    assert reply.status_code == status
    assert told in error_of(reply)['message']


def huge_array() -> bytes:
    return npy(zeros()).replace(b"'shape': (3, 32, 32)", b"'shape': (9999999999,)")


@pytest.mark.parametrize(
    ('body', 'kind', 'status', 'told'),
    [
        (b'', 'image/png', 422, '0 bytes'),
        (picture()[:60], 'image/png', 422, 'cannot be decoded'),
        (picture(size=(1, 1)), 'image/png', 200, ''),
        (picture('GIF'), 'image/png', 415, 'JPEG, PNG or WebP'),
        (b'hello', 'image/jpeg', 415, 'JPEG, PNG or WebP'),
        (b'hello', 'text/plain', 415, 'not text/plain'),
        (b'hello', '', 415, 'no content type'),
        (picture(size=(400, 300)), 'image/png', 413, 'at most 100,000 pixels'),
        (bytes(600_000), 'image/png', 413, 'at most 0.5 MB'),
        (npy(zeros(5)), 'application/x-npy', 413, 'at most 4 images'),
        (npy(zeros()[:2]), 'application/x-npy', 422, 'images have the shape (3, 32, 32)'),
        (npy(zeros(0)), 'application/x-npy', 422, 'images have the shape'),
        (npy(zeros() + np.nan), 'application/x-npy', 422, 'finite'),
        (npy(zeros().astype(int)), 'application/x-npy', 422, 'floating-point numbers, not int64'),
        (npy(zeros())[:-4], 'application/x-npy', 422, 'needs 12288 bytes, not 12284'),
        (npy(np.array([{}], object)), 'application/x-npy', 422, 'floating-point numbers, not object'),
        (huge_array(), 'application/x-npy', 422, 'needs 39999999996 bytes'),
        (b'\x93NUMPY\x01\x00v\x00', 'application/x-npy', 422, 'not a file of numpy.save'),
        (b'nothing', 'multipart/form-data', 422, 'boundary'),
        (b'nothing', 'multipart/form-data; boundary=x', 422, 'form'),
    ],
)
def test_bodies_that_cannot_be_are_refused_in_a_sentence(client, body, kind, status, told):
    reply = client.post('/v1/predict', content=body, headers={'Content-Type': kind} if kind else {})
    assert reply.status_code == status, reply.text
    assert status == 200 or told in error_of(reply)['message']


def test_a_form_is_refused_where_it_has_no_file_or_too_many(client):
    assert 'holds no file' in error_of(client.post('/v1/predict', files={'top': (None, '3')}))['message']
    files = [('image', ('a.png', picture()))] * 5
    assert client.post('/v1/predict', files=files).status_code == 413


def test_a_compressed_body_is_refused(client):
    reply = client.post('/v1/predict', content=b'x', headers={**PNG, 'Content-Encoding': 'gzip'})
    assert reply.status_code == 415


def test_a_body_is_counted_while_it_comes(client):
    def endless():
        for _ in range(100):
            yield bytes(10_000)

    assert client.post('/v1/predict', content=endless(), headers=PNG).status_code == 413


def test_a_deadline_that_cannot_be_met_now_is_429_with_the_time_of_another_try(client, monkeypatch):
    monkeypatch.setattr(client.service.worker, 'could_admit', lambda *args: False)
    reply = client.post('/v1/predict?deadline_ms=30', content=picture(), headers=PNG)
    assert reply.status_code == 429
    assert int(reply.headers['retry-after']) >= 1
    error = error_of(reply)
    assert error['code'] == 'deadline'
    assert error['retry_after_ms'] >= 0


@pytest.mark.parametrize(('reason', 'status'), [('failed', 500), ('worker_lost', 503), ('given_up', 503)])
def test_what_happens_to_the_worker_has_a_status(client, monkeypatch, reason, status):
    async def fails(*args):
        raise Refusal(reason, 'a sentence', 0.5)

    monkeypatch.setattr('snnet.serve.http.shared_state._all', fails)
    reply = client.post('/v1/predict', content=picture(), headers=PNG)
    assert (reply.status_code, error_of(reply)['code']) == (status, reason)


def test_a_request_is_given_up_half_a_second_after_its_deadline(monkeypatch):
    monkeypatch.setattr('snnet.serve.http.shared_state.GRACE', 0.0)
    with client_of(plan=ServicePlan(deadline_ms=100)) as client:
        client.service.net(None).run = lambda images, stitch: client.service._stop.wait(5)
        monkeypatch.setattr(client.service, 'check', lambda *args: None)
        reply = client.post('/v1/predict', content=picture(), headers=PNG)
        assert reply.status_code in (503, 429)  # 429 where decoding took too long on a busy machine
        client.service._stop.set()


def test_a_full_pool_refuses(client, monkeypatch):
    monkeypatch.setattr('snnet.serve.http.decode_pool.DecodePool.run', _busy)
    assert client.post('/v1/predict', content=picture(), headers=PNG).status_code == 429


async def _busy(self, *args):
    raise Refusal('busy', 'too many wait', 0.1)


def test_an_error_of_ours_is_500_in_a_sentence_and_the_service_goes_on(client, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr('snnet.serve.http.predict_route.read_images', lambda *args: 1 / 0)
        reply = client.post('/v1/predict', content=picture(), headers=PNG)
    assert reply.status_code == 500
    assert 'POST /v1/predict failed' in caplog.text
    assert client.post('/v1/predict', content=picture(), headers=PNG).status_code == 200


def test_the_openapi_description_holds_the_options_and_an_example(client):
    described = client.get('/openapi.json').json()['paths']['/v1/predict']['post']
    assert {p['name'] for p in described['parameters']} == {
        'model',
        'deadline_ms',
        'min_top1',
        'flops',
        'stitch',
        'top',
    }
    assert json.dumps(described['responses']['200']).count('tabby cat') == 1
    assert {'413', '415', '422', '429', '500', '503'} <= set(described['responses'])


def test_a_request_ages_from_the_moment_when_its_first_byte_was_there():
    with client_of(plan=ServicePlan(deadline_ms=5000)) as client:
        app, seconds = client.app, [0.0]

        async def late(scope, receive, send):
            scope['state'] = {'arrived': client.service.clock() - seconds[0]}
            await app(scope, receive, send)

        asking = TestClient(late)
        for age, status in ((0.0, 200), (4.0, 200), (6.0, 429)):
            seconds[0] = age
            reply = asking.post('/v1/predict', content=npy(zeros()), headers=NPY)
            assert reply.status_code == status
            assert status != 200 or 1000 * age <= reply.json()['total_ms'] < 1000 * age + 4000


def test_the_routes_that_compute_do_not_pass_fastapi(client, monkeypatch):
    monkeypatch.setattr('fastapi.FastAPI.__call__', lambda *args: 1 / 0)
    assert client.post('/v1/predict', content=npy(zeros()), headers=NPY).status_code == 200
    assert client.post('/v2/models/tiny/infer', content=b'').status_code == 422
    assert client.post('/v2/models/none/versions/1/infer', content=b'').status_code == 404
    assert client.get('/healthz').status_code == 500
