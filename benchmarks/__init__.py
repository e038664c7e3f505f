"""Comparisons with straightforward ways of doing the same; each file is a script."""
