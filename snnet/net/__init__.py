"""The stitchable net, the ways to make one, and the ways to run it."""
