"""Programs for those who work on snnet."""
