"""Modules that a Trainer takes (VC-PPO, cold start, reward model) and their collaborators."""
