"""A line for a network without an adapter, found by recording what the network does with an image."""
