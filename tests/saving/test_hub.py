"""Saved nets on the Hub, through huggingface_hub and a small server that answers as the Hub does."""

from __future__ import annotations

import json

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import constants

import snnet
from snnet import NoWeights, SnnetError, StitchableNet
from snnet.evaluation.evaluate import evaluate
from snnet.net.timm_registry import register_with_timm
from snnet.saving.hub import locate, push_folder
from tests.helpers.families import family_net, images
from tests.helpers.hub_server import Hub
from tests.helpers.runs import eval_settings


@pytest.fixture(scope='module')
def running():
    server = Hub()
    yield server
    server.close()


@pytest.fixture
def hub(running, tmp_path, monkeypatch):
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    for name, value in {
        'ENDPOINT': running.address,
        'HUGGINGFACE_CO_URL_TEMPLATE': running.address + '/{repo_id}/resolve/{revision}/{filename}',
        'HF_HUB_OFFLINE': False,
        'HF_HUB_CACHE': str(tmp_path / 'cache'),
    }.items():
        monkeypatch.setattr(constants, name, value)
    huggingface_hub.close_session()
    running.repos.clear()
    running.refused.clear()
    running.requests.clear()
    yield running
    huggingface_hub.close_session()


@pytest.fixture(scope='module')
def net():
    net = family_net('resnet')
    snnet.recalibrate(net, [images(64, 6)], samples=6, shares=[1])
    return net


def same(first, second):
    x = images(first.input_size[1])
    with torch.no_grad():
        return all(torch.equal(first(x, stitch=i), second(x, stitch=i)) for i in range(len(first.stitches)))


@pytest.mark.slow  # seconds
def test_a_net_that_was_pushed_comes_back_under_its_id(hub, net):
    address = net.push_to_hub('me/elastic', commit_message='First', token='hf_x')
    assert address.startswith(f'{hub.address}/me/elastic/commit/')
    assert hub.messages[-1] == 'First'
    names = {'README.md', 'config.json', 'model.safetensors', 'statistics.safetensors'}
    assert set(hub.repos['me/elastic']['main']) == names | {'.gitattributes'}
    assert b"from_pretrained('me/elastic')" in hub.repos['me/elastic']['main']['README.md']
    loaded = StitchableNet.from_pretrained('me/elastic')
    assert same(loaded, net)
    assert loaded.records == net.records


@pytest.mark.slow  # seconds
def test_what_was_fetched_once_loads_offline_and_is_not_fetched_again(hub, net, monkeypatch):
    net.push_to_hub('me/elastic', token='hf_x')
    first = locate('me/elastic')
    hub.requests.clear()
    assert locate('me/elastic') == first
    assert not [request for request in hub.requests if request.startswith('GET') and '/resolve/' in request]
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    huggingface_hub.close_session()
    hub.requests.clear()
    assert same(StitchableNet.from_pretrained('me/elastic'), net)
    assert hub.requests == []


def test_a_hub_that_is_down_costs_nothing_that_is_in_the_cache(hub, net, monkeypatch):
    net.push_to_hub('me/elastic', token='hf_x')
    first = locate('me/elastic')
    monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
    assert locate('me/elastic') == first
    with pytest.raises(
        SnnetError, match=r'me/other is not in the cache of the Hub, and the Hub at http://127.* cannot be reached'
    ):
        locate('me/other')


@pytest.mark.slow  # seconds
def test_timm_makes_a_net_and_a_stitch_by_the_id_and_later_offline(hub, net, tmp_path, monkeypatch):
    net.push_to_hub('me/elastic', token='hf_x')
    family_net('vit').push_to_hub('me/elastic', revision='small', token='hf_x')
    register_with_timm()
    x = images(net.input_size[1])
    with torch.no_grad():
        assert torch.equal(timm.create_model('hf-hub:me/elastic', stitch=3).eval()(x), net(x, stitch=3))
        assert timm.create_model('hf-hub:me/elastic', stitch=3, num_classes=2).eval()(x).shape == (2, 2)
    assert timm.create_model('hf-hub:me/elastic@small', cache_dir=str(tmp_path / 'other')).title == 'small > large'
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    huggingface_hub.close_session()
    hub.requests.clear()
    assert same(timm.create_model('hf-hub:me/elastic'), net)
    assert timm.create_model('hf-hub:me/elastic@small', cache_dir=tmp_path / 'other').title == 'small > large'
    assert hub.requests == []


@pytest.mark.slow  # seconds
def test_a_revision_can_be_named_in_two_ways(hub, net):
    net.push_to_hub('me/elastic', token='hf_x')
    plain = family_net('vit')
    plain.push_to_hub('me/elastic', revision='small', token='hf_x')
    assert StitchableNet.from_pretrained('me/elastic').title == net.title
    assert 'statistics.safetensors' not in hub.repos['me/elastic']['small']
    for name, options in (('me/elastic@small', {}), ('me/elastic', {'revision': 'small'})):
        assert len(StitchableNet.from_pretrained(name, **options).stitches) == len(plain.stitches)
    commit = hub.commit(hub.repos['me/elastic']['small'])
    assert len(StitchableNet.from_pretrained(f'me/elastic@{commit}').stitches) == len(plain.stitches)
    with pytest.raises(SnnetError, match="names another revision than revision='main'"):
        locate('me/elastic@small', revision='main')


@pytest.mark.slow  # seconds
def test_a_proposal_leaves_the_branch_alone(hub, net):
    net.push_to_hub('me/elastic', token='hf_x')
    before = dict(hub.repos['me/elastic']['main'])
    address = family_net('vit').push_to_hub('me/elastic', create_pr=True, token='hf_x')
    assert address == f'{hub.address}/me/elastic/discussions/1'
    assert hub.repos['me/elastic']['main'] == before
    assert len(StitchableNet.from_pretrained('me/elastic@refs/pr/1').stitches) == len(family_net('vit').stitches)
    with pytest.raises(SnnetError, match="a pull request goes to the main branch, so revision='x'"):
        net.push_to_hub('me/elastic', create_pr=True, revision='x')


def test_a_card_that_was_edited_on_the_hub_stays(hub, net):
    net.push_to_hub('me/elastic', token='hf_x')
    files = hub.repos['me/elastic']['main']
    files['README.md'] = b'---\nlicense: mit\n---\nMine alone.\n'
    net.push_to_hub('me/elastic', token='hf_x')
    assert hub.repos['me/elastic']['main']['README.md'] == b'---\nlicense: mit\n---\nMine alone.\n'


def test_a_folder_goes_with_its_tables_and_nothing_else(hub, tmp_path):
    folder = tmp_path / 'net'
    family_net('vit').save_pretrained(folder)
    for path in ('profiles/cpu.json', 'profiles/notes.txt', 'evaluation/hits.json', 'secret.txt'):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text('{}')
    push_folder(folder, 'me/elastic', commit_message='x', token='hf_x')
    files = set(hub.repos['me/elastic']['main']) - {'.gitattributes'}
    assert files == {'README.md', 'config.json', 'model.safetensors', 'profiles/cpu.json'}
    hub.repos['me/elastic']['main']['other.bin'] = b'x' * 100
    fetched = locate('me/elastic')
    assert {str(path.relative_to(fetched)) for path in fetched.rglob('*') if path.is_file()} == files


def test_a_folder_goes_before_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    family_net('vit').save_pretrained('me/elastic')
    assert StitchableNet.from_pretrained('me/elastic').title == 'small > large'
    assert hub.requests == []


@pytest.mark.parametrize(
    ('name', 'refused', 'told'),
    [
        ('me/none', None, r"no folder 'me/none', and the Hub has no repository me/none, or a private one"),
        ('me/gated', (403, 'GatedRepo'), 'me/gated on the Hub is gated: ask for access'),
        ('me/hidden', (401, 'RepoNotFound'), 'no repository me/hidden, or a private one'),
        (
            'me/wrong',
            (403, 'Forbidden'),
            r'me/wrong is not in the cache of the Hub, and the Hub refuses: 403.*\(log in',
        ),
        ('me/there@v9', None, "me/there on the Hub has no revision 'v9'"),
        ('a/b/c', None, "no folder 'a/b/c', and a repository id on the Hub reads OWNER/NAME"),
        ('nowhere', None, "no folder 'nowhere', and a repository id on the Hub reads"),
        ('nowhere.pth', None, "there is no file 'nowhere.pth'"),
        ('runs/best.safetensors', None, "there is no file 'runs/best.safetensors'"),
        ('me/a..b', None, "'me/a..b' is not a valid repository id on the Hub"),
    ],
)
def test_what_cannot_be_had_is_told_in_one_sentence(hub, name, refused, told):
    hub.repos['me/there'] = {'main': {'config.json': b'{}'}}
    if refused:
        hub.refused[name] = refused
    with pytest.raises(SnnetError, match=told) as caught:
        StitchableNet.from_pretrained(name)
    assert '\n' not in str(caught.value)


def test_offline_and_not_in_the_cache_is_told(hub, monkeypatch):
    with pytest.raises(SnnetError, match='me/new is not in the cache of the Hub, and only the cache was asked'):
        locate('me/new', local_files_only=True)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    huggingface_hub.close_session()
    with pytest.raises(SnnetError, match='me/new is not in the cache of the Hub, and HF_HUB_OFFLINE is set'):
        locate('me/new')
    with pytest.raises(SnnetError, match='HF_HUB_OFFLINE is set'):
        family_net('vit').push_to_hub('me/new', token='hf_x')
    assert hub.requests == []


def test_a_push_that_is_refused_is_told(hub):
    hub.refused['other/net'] = (403, 'Forbidden')
    with pytest.raises(SnnetError, match='other/net is not .*the Hub refuses: 403.*log in'):
        family_net('vit').push_to_hub('other/net', token='hf_x')


def test_a_push_without_a_network_is_told(hub, tmp_path, monkeypatch):
    family_net('vit').save_pretrained(tmp_path)
    monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
    with pytest.raises(SnnetError, match=r'^the Hub at http://127\.0\.0\.1:9 cannot be reached') as caught:
        push_folder(tmp_path, 'me/net', commit_message='x', token='hf_x')
    assert '\n' not in str(caught.value)


def test_a_repository_of_something_else_is_refused(hub):
    hub.repos['me/bert'] = {'main': {'config.json': json.dumps({'model_type': 'bert'}).encode(), 'x.bin': b'x'}}
    with pytest.raises(SnnetError, match='does not describe a stitchable network'):
        StitchableNet.from_pretrained('me/bert')
    hub.repos['me/empty'] = {'main': {'x.bin': b'x'}}
    with pytest.raises(SnnetError, match=r'there is no config\.json'):
        StitchableNet.from_pretrained('me/empty')


def test_a_file_that_was_damaged_on_the_hub_is_refused(hub):
    family_net('vit').push_to_hub('me/elastic', token='hf_x')
    files = hub.repos['me/elastic']['main']
    files['model.safetensors'] = files['model.safetensors'][:-1] + b'?'
    with pytest.raises(NoWeights, match='is damaged'):
        StitchableNet.from_pretrained('me/elastic')


def test_a_net_on_the_hub_is_evaluated_like_a_folder_and_the_cache_stays_as_it_was(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    family_net('vit').push_to_hub('me/elastic', token='hf_x')
    before = {path: path.read_bytes() for path in locate('me/elastic').iterdir()}
    net, output = evaluate(eval_settings('me/elastic', stitches='0-1'))
    assert str(output) == 'output/evaluation/me/elastic'
    assert net.records[1].n == 10
    assert {path: path.read_bytes() for path in locate('me/elastic').iterdir()} == before
    with pytest.raises(SnnetError, match='me/elastic is on the Hub: fetch it first'):
        evaluate(eval_settings('me/elastic', recalibrate=4))
