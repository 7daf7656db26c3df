"""Whole requests through the engine."""
