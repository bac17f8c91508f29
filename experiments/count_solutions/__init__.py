"""Test whether a critic helps if errors show long before the reward, by counting solutions."""
