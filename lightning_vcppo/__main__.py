"""`python -m lightning_vcppo` is `vcppo`."""

from lightning_vcppo.cli import run

if __name__ == "__main__":
    run()
