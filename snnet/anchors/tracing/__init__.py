"""A line for a network without an adapter, found by recording what it does with an image (see README.md)."""
