"""Questions about predictions of the planner: how far they are from what others measured, and how quick."""
