"""Write checkpoints so that each is complete or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from typing_extensions import override

from lightning_vcppo.common.files import complete_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there when it is on the disk.

    Lightning's own writes to the system's folder for temporary files. From there to another file
    system it is copied, so that a kill leaves half a checkpoint; and it needs the checkpoint's size
    in memory once more.
    """

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Save; only files of this machine are moved into place, others are Lightning's matter."""
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with complete_file(Path(path), "wb") as file:
            torch.save(checkpoint, file)
