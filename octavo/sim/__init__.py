"""A discrete-event world: the real scheduler under a virtual clock."""
