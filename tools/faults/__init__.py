"""Injects faults into tiny training runs and checks that nothing is lost: `python -m tools.faults --help`."""
