"""Saved nets in the pipelines of transformers."""

from __future__ import annotations

import sys

import pytest
import torch

import snnet
from snnet.net.transformers_registry import register_with_transformers
from tests.helpers.runs import write_images


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(snnet.MissingExtra, match=r"pip install -e '\.\[transformers\]'"):
        register_with_transformers()


@pytest.mark.slow  # importing a pipeline of transformers takes seconds
@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::FutureWarning')
@pytest.mark.parametrize('several', [False, True])
def test_the_pipeline_gives_what_the_net_predicts(tmp_path, several):
    transformers = pytest.importorskip('transformers')
    net = snnet.create_stitchable_net('test_vit,test_vit2', pretrained=False, num_classes=3, img_size=32).eval()
    net.class_names, net.several_labels = ['cat', 'dog', 'fly'], several
    net.save_pretrained(tmp_path / 'net')
    write_images(tmp_path / 'images', 1, 1, size=40)
    file = tmp_path / 'images' / 'class0' / '0.png'
    register_with_transformers()
    register_with_transformers()
    classify = transformers.pipeline('image-classification', model=str(tmp_path / 'net'), model_kwargs={'stitch': 4})
    (expected,) = net.predict(file, stitch=4)
    found = classify(str(file), top_k=3)
    assert [row['label'] for row in found] == list(expected.labels)
    assert [row['score'] for row in found] == pytest.approx(list(expected.probabilities), abs=1e-6)
    model = transformers.AutoModelForImageClassification.from_pretrained(str(tmp_path / 'net'))
    x = torch.randn(2, 3, 32, 32)
    out = model(x, labels=torch.tensor([[0, 1, 1], [1, 0, 0]]) if several else torch.tensor([0, 1]))
    costliest = net.choose(flops=1e18).record.stitch
    assert torch.equal(out.logits, net(x, stitch=costliest))
    assert out.loss > 0
