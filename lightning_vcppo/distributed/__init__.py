"""Run on several ranks: collectives, sharding, strategies."""
