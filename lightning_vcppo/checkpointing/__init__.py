"""Checkpoints: format, safe loading, complete-or-absent writing, signals, a run's directory."""
