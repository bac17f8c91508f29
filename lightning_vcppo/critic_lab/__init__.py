"""Fit, measure and compare critics on stored rollouts, before the policy is trained."""

from __future__ import annotations

from lightning_vcppo.critic_lab.fitting import CriticData, CriticFit
from lightning_vcppo.critic_lab.measures import Measures, measure
from lightning_vcppo.critic_lab.store import TokenStore

__all__ = ["CriticData", "CriticFit", "Measures", "TokenStore", "measure"]
