"""A pretrained network as a line: a stem, blocks and a head that can be cut between any two blocks.

names and weights turn what a user asked for into a network; registry wraps it as an Anchor (anchor.py), with an
adapter of its family or by tracing it. survey.py measures its boundaries, cut.py copies a part of it, flops.py counts
what each part costs, and normalization.py makes every network see images as it was trained.
"""

from ..utils.lazy import lazy_package

__getattr__, __dir__ = lazy_package(__name__)
