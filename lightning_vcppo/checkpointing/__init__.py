"""Checkpoints: their format, how they are read and written, and whose directory is it."""
