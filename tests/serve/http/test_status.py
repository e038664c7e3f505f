from __future__ import annotations

import json
import re
from importlib.resources import files

import pytest

from snnet.errors import NoWeights, SnnetError
from snnet.serve.http.shared_state import read_secret
from tests.helpers.served import client_of, picture, tiny_net

PNG = {'Content-Type': 'image/png'}


@pytest.fixture(scope='module')
def client():
    with client_of(tiny_net(), tiny_net('unknown', evaluated=False)) as client:
        yield client


def value_of(text: str, metric: str) -> float:
    return float(re.search(rf'^{re.escape(metric)} (\S+)$', text, re.MULTILINE)[1])


def test_metrics_count_outcomes_stitches_batches_and_the_accuracy_served(client):
    before = client.get('/metrics').text
    stitch = client.post('/v1/predict', content=picture(), headers=PNG).json()['results'][0]['stitch']
    client.post('/v1/predict?stitch=999', content=picture(), headers=PNG)
    after = client.get('/metrics').text
    counted = 'snnet_images_total{model="tiny",outcome="in_time"}'
    earlier = value_of(before, counted) if counted in before else 0
    assert value_of(after, counted) == earlier + 1
    assert value_of(after, 'snnet_images_total{model="tiny",outcome="invalid"}') >= 1
    assert value_of(after, f'snnet_answers_total{{model="tiny",stitch="{stitch}"}}') >= 1
    count = value_of(after, 'snnet_served_top1_count{model="tiny"}')
    top1 = client.service.net('tiny').records[stitch].top1
    assert value_of(after, 'snnet_served_top1_sum{model="tiny"}') / count == pytest.approx(top1)
    assert value_of(after, 'snnet_batch_size_count{model="tiny"}') == count
    assert value_of(after, 'snnet_attainment{model="tiny"}') == 1
    assert value_of(after, 'snnet_ready') == 1


def test_stitches_hold_what_is_known_and_what_the_controller_expects(client):
    tiny, unknown = client.get('/v1/stitches').json()['models']
    served = client.service.net('tiny')
    assert [s['flops'] for s in tiny['stitches']] == [record.flops for record in served.records]
    assert [t['batch'] for t in tiny['tables']] == [1, 4]
    assert [c['stitch'] for c in tiny['choices']] == [c.stitch for c in served.choices.choices]
    assert [len(c['batch_ms']) for c in tiny['choices']] == [4] * len(tiny['choices'])
    assert (tiny['evaluated'], unknown['evaluated'], unknown['frontier']) == (True, False, [])


def test_status_sums_up_the_last_seconds(client):
    client.post('/v1/predict', content=picture(), headers=PNG)
    found = client.get('/v1/status').json()
    assert (found['state'], found['ready'], found['waiting']) == ('ready', True, 0)
    live = found['models']['tiny']
    assert live['attainment'] == 100
    assert live['rate'] > 0
    assert sum(live['stitches'].values()) >= 1


def test_health_and_readiness_while_starting_draining_and_broken():
    with client_of() as client:
        for state, ready, healthy in (
            ('starting', 503, 200), ('ready', 200, 200), ('draining', 503, 200), ('broken', 503, 503),
        ):  # fmt: skip
            client.service.state = state
            assert client.get('/readyz').status_code == ready
            assert client.get('/healthz').status_code == healthy
        client.service.state = 'draining'
        reply = client.post('/v1/predict', content=picture(), headers=PNG)
        assert (reply.status_code, reply.json()['error']['code']) == (503, 'draining')
        client.service.state = 'starting'
        reply = client.post('/v1/predict', content=picture(), headers=PNG)
        assert (reply.status_code, reply.json()['error']['code']) == (503, 'starting')
        assert int(reply.headers['retry-after']) >= 1


def test_a_key_is_asked_for_everywhere_but_for_health_and_the_page():
    with client_of(key='secret-key') as client:
        for path in ('/metrics', '/v1/status', '/v1/stitches', '/v2', '/v2/models/tiny', '/openapi.json'):
            reply = client.get(path)
            assert (reply.status_code, reply.headers['www-authenticate']) == (401, 'Bearer')
            assert client.get(path, headers={'Authorization': 'Bearer secret-key'}).status_code == 200
            assert client.get(path, headers={'X-API-Key': 'secret-key'}).status_code == 200
            assert client.get(path, headers={'Authorization': 'Bearer secret-kez'}).status_code == 401
        for path in ('/', '/healthz', '/readyz', '/v2/health/live', '/v2/health/ready', '/assets/page.js'):
            assert client.get(path).status_code == 200
        assert client.post('/v1/predict', content=picture(), headers=PNG).status_code == 401


def test_the_access_log_holds_one_line_of_json_per_request(caplog):
    with client_of(log_access=True) as client, caplog.at_level('INFO', 'snnet.access'):
        client.post('/v1/predict?stitch=3', content=picture(), headers=PNG)
        client.post('/v1/predict?stitch=999', content=picture(), headers=PNG)
    one, two = (json.loads(r.message) for r in caplog.records if r.name == 'snnet.access')
    assert (one['method'], one['path'], one['status']) == ('POST', '/v1/predict', 200)
    assert (one['model'], one['stitch']) == ('tiny', 3)
    assert (two['status'], two['refused']) == (422, 'invalid')


def test_reloading_is_off_without_a_token_and_needs_it_otherwise():
    def load(name, version):
        fresh = tiny_net(name)
        fresh.version = version
        return fresh

    with client_of(load=load) as client:
        assert client.post('/v1/reload').status_code == 404
    with client_of(load=load, reload_token='a token') as client:
        assert client.post('/v1/reload').status_code == 401
        assert client.post('/v1/reload', headers={'X-Reload-Token': 'another'}).status_code == 401
        reply = client.post('/v1/reload?model=tiny', headers={'X-Reload-Token': 'a token'})
        assert reply.json()['version'] == 2
        assert client.post('/v1/predict', content=picture(), headers=PNG).json()['version'] == 2
        assert client.post('/v1/reload?model=other', headers={'X-Reload-Token': 'a token'}).status_code == 404


def test_a_damaged_net_is_not_reloaded():
    def load(name, version):
        raise NoWeights('model.safetensors is damaged')

    with client_of(load=load, reload_token='a token') as client:
        reply = client.post('/v1/reload', headers={'X-Reload-Token': 'a token'})
        assert reply.status_code == 422
        assert 'the old net goes on' in reply.json()['error']['message']
        assert client.post('/v1/predict', content=picture(), headers=PNG).json()['version'] == 1


def test_the_page_loads_nothing_from_elsewhere_and_every_file_it_names_is_there(client):
    page = client.get('/')
    assert page.headers['content-type'].startswith('text/html')
    assert "default-src 'self'" in page.headers['content-security-policy']
    named = re.findall(r'(?:href|src)="(/[^"#]+)"', page.text)
    assert len(named) == 3
    for path in named:
        assert client.get(path).status_code == 200
    for entry in (files('snnet.serve.http') / 'assets').iterdir():
        text = entry.read_text(encoding='utf-8').replace('http://www.w3.org/2000/svg', '')
        assert not re.search(r'https?:|@import|url\(', text), entry.name
    assert client.get('/assets/other.js').status_code == 404
    assert client.get('/assets/..%2fapp.py').status_code == 404


def test_every_control_of_the_page_has_a_name(client):
    text = client.get('/').text
    labelled = set(re.findall(r'<label[^>]* for="(\w+)"', text))
    for control in re.findall(r'<(?:input|select)[^>]*>', text):
        name = re.search(r'id="(\w+)"', control)[1]
        around = re.search(rf'<label>[^<]*<(?:input|select)[^>]*id="{name}"', text)
        assert name in labelled or around, control


def test_secrets_are_read_from_files_and_short_ones_are_refused(tmp_path):
    assert read_secret('', 'API key') is None
    (tmp_path / 'key').write_text('12345678\n')
    assert read_secret(str(tmp_path / 'key'), 'API key') == '12345678'
    (tmp_path / 'key').write_text('1234567')
    with pytest.raises(SnnetError, match='at least 8 ASCII characters'):
        read_secret(str(tmp_path / 'key'), 'API key')
    with pytest.raises(SnnetError, match='cannot be read'):
        read_secret(str(tmp_path / 'none'), 'API key')
