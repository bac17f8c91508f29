"""Test whether PPO collapses without an added bias, on arithmetic with checked lines."""
