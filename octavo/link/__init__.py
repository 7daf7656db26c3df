"""The link between the front process and an engine process: typed, bounded, numbered frames."""
