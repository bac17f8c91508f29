"""Compute the metrics of rollouts and evaluations, without a Trainer."""
