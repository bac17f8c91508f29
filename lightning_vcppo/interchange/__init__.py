"""Read rollouts of other trainers, and convert them to the records of this package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_vcppo.common.lazy import lazy_exports

if TYPE_CHECKING:
    from lightning_vcppo.interchange.importing import Importer, ImportReport
    from lightning_vcppo.interchange.reading import read_responses
    from lightning_vcppo.interchange.schemas import Fields, ForeignResponse

__all__ = ["Fields", "ForeignResponse", "ImportReport", "Importer", "read_responses"]

__getattr__ = lazy_exports(
    __name__,
    {
        "Importer": "importing",
        "ImportReport": "importing",
        "read_responses": "reading",
        "Fields": "schemas",
        "ForeignResponse": "schemas",
    },
)
