"""Test whether the collapse in `checked_arithmetic` is one of the learning rate."""
