"""Write checkpoints so that each is complete or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from typing_extensions import override

from lightning_vcppo.common.files import complete_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint next to its final path and renames it when it is on the disk.

    Lightning's own plugin writes to the system's directory for temporary files. If that is on
    another file system, the checkpoint is copied from there, so a kill leaves half of it; and it
    needs the checkpoint's size in memory a second time.
    """

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Save a local path as described above, and leave any other to Lightning."""
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with complete_file(Path(path), "wb") as file:
            torch.save(checkpoint, file)
