"""Estimate memory and time of a run before it starts, by arithmetic only: no torch, no network.

shapes.py counts weights, run.py describes a run, memory.py and seconds.py estimate its memory and
time, advice.py suggests changes if it does not fit, and split.py divides the devices.
"""
