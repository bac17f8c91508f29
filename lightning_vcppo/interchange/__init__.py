"""Rollouts and critics of other trainers: files that they write, and directories that they load."""

from __future__ import annotations

from lightning_vcppo.interchange.importing import Importer, ImportReport
from lightning_vcppo.interchange.reading import read_responses
from lightning_vcppo.interchange.schemas import ForeignResponse

__all__ = ["ForeignResponse", "ImportReport", "Importer", "read_responses"]
