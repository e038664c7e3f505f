"""The stitchable net, the ways to make one, and the ways to run it.

The net is built in three steps: joined_anchors.py runs stitches, measured_net.py remembers what was measured of them
(results_tied_to_weights.py drops it once weights change) and chooses one by a budget, and stitchable_net.py is the net
as users see it, which is also cut, saved, loaded and used as a network of timm.
"""

from ..utils.lazy import lazy_package

__getattr__, __dir__ = lazy_package(__name__)
