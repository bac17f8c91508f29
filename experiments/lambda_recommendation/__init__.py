"""Test whether the lambda that `vcppo critic compare --actor` recommends is the one to take."""
