"""Several ranks: collectives, sharding, strategies."""
