from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import snnet
from snnet.budget.record import Record
from snnet.errors import SnnetError
from snnet.exporting.set_index import Entry, Index
from snnet.exporting.triton_repository import write_triton_repository
from tests.helpers.families import family_net


@pytest.fixture(scope='module')
def index(tmp_path_factory):
    pytest.importorskip('onnxruntime')
    net = family_net('vit')
    net.records = [replace(record, top1=50.0 + record.flops / 1e6, n=9) for record in net.records]
    return snnet.export_set(net, tmp_path_factory.mktemp('set'), 2, format='onnx')


@pytest.mark.slow  # exports two files
def test_every_stitch_is_a_model_whose_description_matches_its_file(index, tmp_path):
    import onnxruntime

    names = write_triton_repository(index, tmp_path, 'demo', max_batch=8)
    assert names == [f'demo_stitch{entry.record.stitch}' for entry in index.entries]
    for name in names:
        config = (tmp_path / name / 'config.pbtxt').read_text()
        session = onnxruntime.InferenceSession(tmp_path / name / '1' / 'model.onnx')
        (given,), (got,) = session.get_inputs(), session.get_outputs()
        assert f'{{ name: "{given.name}", data_type: TYPE_FP32, dims: [ 3, 32, 32 ] }}' in config
        assert f'{{ name: "{got.name}", data_type: TYPE_FP32, dims: [ 7 ] }}' in config
        assert session.run(None, {given.name: np.zeros((5, 3, 32, 32), np.float32)})[0].shape == (5, 7)
    with pytest.raises(SnnetError, match='already exists'):
        write_triton_repository(index, tmp_path, 'demo')


@pytest.mark.slow  # see above
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_the_descriptions_are_what_triton_reads(index, tmp_path):
    pytest.importorskip('grpc', reason='needs tritonclient[grpc]')  # without it tritonclient raises a RuntimeError
    configs = pytest.importorskip('tritonclient.grpc.model_config_pb2', reason='needs tritonclient[grpc]')
    text_format = pytest.importorskip('google.protobuf.text_format')
    index = replace(index, about={**index.about, 'several_labels': True})
    for name in write_triton_repository(index, tmp_path, 'demo', max_batch=8):
        text = (tmp_path / name / 'config.pbtxt').read_text()
        config = text_format.Parse(text, configs.ModelConfig())
        assert (config.name, config.backend, config.max_batch_size) == (name, 'onnxruntime', 8)
        assert [*config.input[0].dims] == [3, 32, 32]
        assert config.HasField('dynamic_batching')
        assert config.parameters['several_labels'].string_value == 'true'


@pytest.mark.parametrize('several_labels', [False, True])
def test_a_model_says_where_images_have_several_labels(several_labels, tmp_path):
    """Clients have to know whether to take the softmax of the logits, or the sigmoid of each."""
    (tmp_path / 'x.onnx').touch()
    about = {'file_format': 'onnx', 'batch': 'any', 'input': 'images', 'output': 'logits', 'classes': 7}
    about |= {'input_size': [3, 32, 32]} | ({'several_labels': True} if several_labels else {})
    entry = Entry(tmp_path / 'x.onnx', Record(4, 'a > b'), '', 0.0)
    (name,) = write_triton_repository(Index(tmp_path, about, (entry,)), tmp_path)
    text = (tmp_path / name / 'config.pbtxt').read_text()
    said = 'parameters { key: "several_labels" value { string_value: "true" } }'
    assert text.splitlines()[-1] == (said if several_labels else 'dynamic_batching { }')


@pytest.mark.parametrize(
    ('about', 'told'),
    [
        ({'file_format': 'pt2', 'batch': 'any'}, 'pt2 files; Triton runs those of --format onnx'),
        ({'file_format': 'onnx', 'batch': 4}, 'batches of 4 only: export without --batch'),
        ({'file_format': 'onnx', 'batch': 'any', 'max_batch': 0}, 'max_batch is at least 1, not 0'),
    ],
)
def test_sets_that_triton_cannot_run_are_refused(tmp_path, about, told):
    with pytest.raises(SnnetError, match=told):
        write_triton_repository(Index(tmp_path, about, ()), tmp_path, max_batch=about.get('max_batch', 1))
