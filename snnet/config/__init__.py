"""Settings: their types and defaults, YAML files, command-line flags and recipes."""
