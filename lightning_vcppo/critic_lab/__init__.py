"""The critic lab: which critic, and how good it is, from stored rollouts, before any training."""

from __future__ import annotations

from lightning_vcppo.critic_lab.fitting import CriticData, CriticFit
from lightning_vcppo.critic_lab.measures import Measures, measure
from lightning_vcppo.critic_lab.store import TokenStore

__all__ = ["CriticData", "CriticFit", "Measures", "TokenStore", "measure"]
