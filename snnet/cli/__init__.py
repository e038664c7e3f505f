"""The command `snnet`, one file per subcommand."""
