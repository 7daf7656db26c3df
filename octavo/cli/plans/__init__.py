"""One module per kind of `octavo plan`: `configure(parser)`, `run(args) -> exit code`, and a docstring for its help."""
