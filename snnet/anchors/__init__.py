"""A pretrained network as a line: a stem, blocks and a head that can be cut between any two blocks.

names.py and weights.py turn what a user asked for into a network. registry.py wraps it as an Anchor (anchor.py), with
an adapter of its family or by tracing it. network_line.py says what a line is, survey.py measures its boundaries,
cut.py copies a part of it, and flops.py counts what each part costs. align_normalization.py lets every network of a
net see images as it was trained.
"""

from ..utils.lazy import lazy_package

__getattr__, __dir__ = lazy_package(__name__)
