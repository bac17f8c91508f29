"""Define the commands of `vcppo`, one per file; `registry.py` lists them."""
