"""How the bundled models are trained and measured. Not installed with the package."""
