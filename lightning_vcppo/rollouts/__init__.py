"""Rollouts: how they are sampled, kept, saved and read again."""
