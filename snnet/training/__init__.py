"""Training runs that can be left alone: they resume, stop on request and end bit for bit the same."""
