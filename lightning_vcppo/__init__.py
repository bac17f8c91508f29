"""Value-calibrated PPO for language-model reasoning, as a PyTorch Lightning module collection."""

from typing import TYPE_CHECKING

from lightning_vcppo.common.lazy import lazy_exports

if TYPE_CHECKING:
    from lightning_vcppo.data.datamodule import AIMEDataModule
    from lightning_vcppo.data.generator import ProblemSettings, generate_problems
    from lightning_vcppo.data.problem import Problem
    from lightning_vcppo.modules.cold_start import ColdStartModule
    from lightning_vcppo.modules.reward_model import RewardModelModule
    from lightning_vcppo.modules.vcppo import VCPPOModule

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
    "AIMEDataModule": "data.datamodule",
    "ColdStartModule": "modules.cold_start",
    "Problem": "data.problem",
    "ProblemSettings": "data.generator",
    "RewardModelModule": "modules.reward_model",
    "VCPPOModule": "modules.vcppo",
    "generate_problems": "data.generator",
}

__getattr__ = lazy_exports(__name__, _HOME)  # torch takes seconds, and a report needs none
