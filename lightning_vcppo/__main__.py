"""`python -m lightning_vcppo`, the same as `vcppo`."""

from lightning_vcppo.cli.main import run

if __name__ == "__main__":
    run()
