"""Value-calibrated PPO for language-model reasoning, as a PyTorch Lightning module collection."""

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
