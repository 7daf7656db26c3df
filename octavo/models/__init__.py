"""Decoders built from checkpoints: registry, loader, layers, and one short file per family."""
