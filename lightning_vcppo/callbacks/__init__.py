"""Alias of the top-level directory `callbacks/` in a checkout; a wheel has its files here."""

from pathlib import Path
from typing import TYPE_CHECKING

__path__ = [str(Path(__file__).resolve().parents[2] / "callbacks")]

if TYPE_CHECKING:
    from callbacks import *  # noqa: F403
    from callbacks import __all__ as __all__
else:  # With the path above this is the `__init__.py` of `callbacks/`: one list of names.
    from lightning_vcppo.callbacks.__init__ import *  # noqa: F403
    from lightning_vcppo.callbacks.__init__ import __all__ as __all__
