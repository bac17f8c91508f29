"""Estimate memory and time of a run before it starts, by arithmetic only: no torch, no network.

shapes.py counts weights, run.py describes a run, memory.py and seconds.py estimate what it takes,
and advice.py suggests what to change if that is too much.
"""
