"""Questions about what a shortcut costs in quality."""
