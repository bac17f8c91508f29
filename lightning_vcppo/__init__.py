"""Value-calibrated PPO for language-model reasoning, as a PyTorch Lightning module collection."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_vcppo.cold_start import ColdStartModule, RewardModelModule
    from lightning_vcppo.data import AIMEDataModule
    from lightning_vcppo.module import VCPPOModule
    from lightning_vcppo.problems import Problem, ProblemSettings, generate_problems

__version__ = "0.1.0"

__all__ = [
    "AIMEDataModule",
    "ColdStartModule",
    "Problem",
    "ProblemSettings",
    "RewardModelModule",
    "VCPPOModule",
    "generate_problems",
]

_HOME = {
    "AIMEDataModule": "data",
    "ColdStartModule": "cold_start",
    "Problem": "problems",
    "ProblemSettings": "problems",
    "RewardModelModule": "cold_start",
    "VCPPOModule": "module",
    "generate_problems": "problems",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: torch takes seconds, a report needs none."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
