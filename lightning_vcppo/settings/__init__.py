"""Define the hyper-parameters of VC-PPO, grouped by the part of the algorithm that reads them.

Defaults are the paper's (VC-PPO, arXiv 2503.01491) where it states one; every switch of
a later paper is off. `configs/` holds the presets.
"""

from __future__ import annotations

from lightning_vcppo.settings.advantage import AdvantageSettings
from lightning_vcppo.settings.aggregation import LossAggMode
from lightning_vcppo.settings.policy import PolicySettings
from lightning_vcppo.settings.rollouts import (
    EngineSettings,
    GradingSettings,
    RewardShapingSettings,
    SamplingSettings,
)
from lightning_vcppo.settings.updates import (
    Kernels,
    LoRASettings,
    MasterWeights,
    Offload,
    OptimizerSettings,
    UpdateSettings,
)
from lightning_vcppo.settings.value import ValueSettings

__all__ = [
    "AdvantageSettings",
    "EngineSettings",
    "GradingSettings",
    "Kernels",
    "LoRASettings",
    "LossAggMode",
    "MasterWeights",
    "Offload",
    "OptimizerSettings",
    "PolicySettings",
    "RewardShapingSettings",
    "SamplingSettings",
    "UpdateSettings",
    "ValueSettings",
]
