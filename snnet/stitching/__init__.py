"""Stitch layers, which join two anchors, and the rules that list the stitches of a net."""

from ..utils.lazy import lazy_package

__getattr__, __dir__ = lazy_package(__name__)
