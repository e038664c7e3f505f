from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

import snnet
from snnet import SnnetError, StitchableNet
from snnet.budget.frontier import frontier_table
from snnet.net.save_and_load import write_records
from snnet.saving.model_card import _front_matter
from tests.helpers.families import family_net, images, three_vits


def with_accuracy(net):
    net.records = [replace(r, top1=50.0 + 7 * r.stitch % 13, n=1000) for r in net.records]
    return net


def card(folder):
    return (folder / 'README.md').read_text()


def test_the_card_tells_what_the_net_is_and_what_was_measured(tmp_path):
    net = with_accuracy(three_vits())
    net.save_pretrained(tmp_path, license='mit')
    parsed = ModelCard(card(tmp_path))
    assert (parsed.data.library_name, parsed.data.license) == ('snnet', 'mit')
    assert parsed.data.get('datasets') is None
    assert f'```text\n{frontier_table(net.records)}\n```' in parsed.text
    assert '![accuracy over FLOPs of every stitch](frontier.png)' in parsed.text
    assert (tmp_path / 'frontier.png').read_bytes().startswith(b'\x89PNG')
    assert 'measured over 1000 images' in parsed.text
    for i in range(3):
        assert f'| {net.anchor(i).name} | `{net.anchor(i).source.model}` | ' in parsed.text


def test_anchors_of_the_paper_are_named_with_their_tags():
    models = ('deit_tiny_patch16_224.fb_in1k', 'resnet18.tv_in1k', 'own', 'resnet50')
    config = {'anchors': [{'model': model, 'args': {'num_classes': 10}} for model in models]}
    config['anchors'].append({'model': 'deit_small_patch16_224.fb_in1k', 'args': {'embed_dim': 16}})
    data = ModelCard(_front_matter(config, 'unknown')).data
    assert data.base_model == ['timm/deit_tiny_patch16_224.fb_in1k', 'timm/resnet18.tv_in1k']
    assert data.license == 'unknown'


@pytest.mark.filterwarnings('ignore:no stitch within the budget has been evaluated')
def test_the_usage_in_the_card_runs(tmp_path, monkeypatch):
    net = family_net('vit')
    net.save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    code = card(tmp_path).partition('```python\n')[2].partition('```')[0]
    scope = {'images': images(32)}
    exec(code, scope)
    assert scope['net'].stitches == net.stitches
    assert scope['logits'].shape == (2, 7)


@pytest.mark.slow  # seconds
def test_a_net_that_was_not_evaluated_has_a_card_without_picture(tmp_path):
    with_accuracy(family_net('vit')).save_pretrained(tmp_path)
    family_net('vit').save_pretrained(tmp_path)
    assert 'No stitch has been evaluated yet' in card(tmp_path)
    assert 'frontier.png' not in card(tmp_path)
    assert not (tmp_path / 'frontier.png').exists()


def test_without_matplotlib_the_card_has_its_table_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    net = with_accuracy(family_net('vit'))
    net.save_pretrained(tmp_path)
    assert frontier_table(net.records) in card(tmp_path)
    assert 'frontier.png' not in card(tmp_path)
    assert StitchableNet.from_pretrained(tmp_path).records == net.records


def test_an_evaluation_reaches_the_card(tmp_path):
    net = family_net('vit')
    net.save_pretrained(tmp_path)
    write_records(tmp_path, with_accuracy(net).records)
    assert frontier_table(net.records) in card(tmp_path)
    assert StitchableNet.from_pretrained(tmp_path).records == net.records


@pytest.mark.slow  # seconds
def test_recalibrated_statistics_are_told(tmp_path):
    net = family_net('resnet')
    snnet.recalibrate(net, [images(64, 6)], samples=6, shares=[1])
    net.save_pretrained(tmp_path)
    assert f'{len(net.stitches)} stitches have their own BatchNorm statistics, from 6 images' in card(tmp_path)


@pytest.mark.slow  # seconds
def test_a_card_that_nobody_edited_follows_the_net_and_keeps_its_license(tmp_path):
    three_vits().save_pretrained(tmp_path, license='mit')
    family_net('vit').save_pretrained(tmp_path)
    assert card(tmp_path).count('# small > large') == 1
    assert 'w16' not in card(tmp_path)
    assert ModelCard(card(tmp_path)).data.license == 'mit'
    again = card(tmp_path)
    family_net('vit').save_pretrained(tmp_path)
    assert card(tmp_path) == again


@pytest.mark.slow  # a few seconds
def test_what_the_user_wrote_around_the_section_stays_letter_for_letter(tmp_path):
    three_vits().save_pretrained(tmp_path)
    text = card(tmp_path).replace('license: unknown', 'license: mit  # mine')
    before, after = text.split('<!-- snnet ')[0] + 'My words.\n\n', '\n## Mine\n\nMore: \\1 $x$\n'
    (tmp_path / 'README.md').write_text(f'{before}<!-- snnet {text.split("<!-- snnet ")[1]}{after}')
    for _ in range(2):
        with_accuracy(family_net('vit')).save_pretrained(tmp_path)
        assert card(tmp_path).startswith(before)
        assert card(tmp_path).endswith(after)
        assert '| small | ' in card(tmp_path)
        assert 'w16' not in card(tmp_path)[len(before) :]


@pytest.mark.parametrize('text', ['My own card.\n', '---\nlicense: mit\n---\n\nMine.\n', '---\n: broken [\n---\nx\n'])
def test_a_card_without_our_section_is_left_alone(tmp_path, text):
    (tmp_path / 'README.md').write_text(text)
    family_net('vit').save_pretrained(tmp_path)
    assert card(tmp_path) == text


def test_a_card_that_is_only_front_matter_gets_a_body(tmp_path):
    (tmp_path / 'README.md').write_text('---\nlicense: mit\nlanguage: en\n---\n')
    for _ in range(2):
        family_net('vit').save_pretrained(tmp_path)
        assert card(tmp_path).startswith('---\nlicense: mit\nlanguage: en\n---\n\n# small > large\n')
        assert card(tmp_path).count('## Frontier') == 1


def test_a_card_in_another_encoding_is_left_alone(tmp_path):
    (tmp_path / 'README.md').write_bytes(b'\xff\xfe\x00')
    family_net('vit').save_pretrained(tmp_path)
    assert (tmp_path / 'README.md').read_bytes() == b'\xff\xfe\x00'


def test_nothing_is_written_where_a_net_cannot_be_saved(tmp_path):
    net = family_net('vit')
    net.anchor(1).source = None
    with pytest.raises(SnnetError):
        net.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_saving_again_leaves_results_and_tables_alone(tmp_path):
    net = family_net('vit')
    net.save_pretrained(tmp_path)
    for path in ('evaluation/stitches.jsonl', 'profiles/cpu.json', 'notes.txt'):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text('mine')
    net.save_pretrained(tmp_path)
    for path in ('evaluation/stitches.jsonl', 'profiles/cpu.json', 'notes.txt'):
        assert (tmp_path / path).read_text() == 'mine'


def test_what_only_a_machine_knows_is_not_saved(tmp_path):
    family_net('vit').save_pretrained(tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    for row in config['stitches']:
        row |= {'latency_ms': 3.0, 'memory': 5}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    write_records(tmp_path, StitchableNet.from_pretrained(tmp_path).records)
    rows = json.loads((tmp_path / 'config.json').read_text())['stitches']
    assert not {'latency_ms', 'memory'} & {key for row in rows for key in row}
