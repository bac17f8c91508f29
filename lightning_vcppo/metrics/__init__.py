"""The numbers that are reported about rollouts and evaluations; none needs a Trainer."""
