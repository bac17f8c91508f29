"""What a run will take before it is paid for, by arithmetic alone: no torch, no network.

shapes.py counts weights, run.py says what a run is, memory.py and seconds.py what it takes, and
advice.py what to change if that is too much.
"""
