"""Test whether the lambda that `vcppo critic compare --actor` recommends is as good as the best."""
