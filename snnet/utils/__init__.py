"""Small tools of any program: files, logs, seeds, processes. Nothing here knows what a network is."""
