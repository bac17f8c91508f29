"""Checked arithmetic: does PPO collapse without a bias that was put there?"""
