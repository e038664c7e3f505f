"""Latency and memory of every stitch, measured on this machine."""
