"""Sample, store, save and read rollouts."""
