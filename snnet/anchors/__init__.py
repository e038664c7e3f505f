"""A pretrained network as a line: a stem, blocks and a head that can be cut between any two blocks."""
