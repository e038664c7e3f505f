"""Everything that was written for a GPU, proven and measured on one by a single command (see `__main__`)."""
