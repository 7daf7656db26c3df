"""Decisions: what to compute next, in which blocks, and who waits. Standard library only; no clock, no I/O."""
