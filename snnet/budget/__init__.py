"""Records of stitches, the frontier among them, latency tables, and the choice of a stitch under a budget. No torch."""
