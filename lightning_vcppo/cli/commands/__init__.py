"""The commands of `vcppo`, one a file; `registry.py` lists them."""
