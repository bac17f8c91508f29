"""Test at which learning rate of the critic value pretraining becomes necessary."""
