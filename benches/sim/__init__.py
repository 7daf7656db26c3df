"""Questions about the simulator: how far it is from runs that were, and how quick it is."""
