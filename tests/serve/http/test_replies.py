"""What replies say of the classes of an image."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from snnet.serve.http.replies import labels_of

LOGITS = np.array([1000.0, -1000.0, 0.5, 2.0, 900.0], np.float32)


@pytest.mark.parametrize(
    ('several', 'order', 'probabilities'),
    [(False, [0, 4, 1], [1, 0, 0]), (True, [0, 4, 3, 2, 1], [1, 1, 0.880797, 0.622459, 0])],
)
def test_probabilities_are_shares_or_with_several_labels_those_of_each_class(several, order, probabilities):
    served = SimpleNamespace(net=SimpleNamespace(several_labels=several), labels=list('abcde'))
    found = labels_of(served, LOGITS, len(order))
    assert [row['class'] for row in found] == order
    assert [row['probability'] for row in found] == probabilities
