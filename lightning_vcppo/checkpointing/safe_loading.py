"""What others have written is data: files that cannot run code, texts that cannot move a cursor.

A pickle runs code when it is read. Weights are therefore read from safetensors alone, unless
`--allow_pickle` says otherwise; checkpoints by `torch.load(weights_only=True)`; and the index of a
checkpoint in parts, which torch reads as a plain pickle, is looked through first. See
docs/security.md.
"""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path

ALLOW_PICKLE = "VCPPO_ALLOW_PICKLE"
"""Variable of the environment, so that all processes of a run know; `--allow_pickle` sets it."""

_INDEX = ".metadata"
_INDEX_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch": {"Size"},  # and its number types
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},  # Python 3.13
}
"""What the index of a checkpoint is made of: places and sizes of tensors."""


def pickles_allowed() -> bool:
    """Tell whether weights may be read from a pickle."""
    return os.environ.get(ALLOW_PICKLE, "") not in ("", "0", "false")


def _refusal(source: str) -> str:
    """Return why weights that are a pickle are not read."""
    return (
        f"{source}: its weights are no safetensors but a pickle (pytorch_model.bin), which can run "
        "code when it is read; convert them, or load them with --allow_pickle=true "
        f"({ALLOW_PICKLE}=1) if you trust where they come from"
    )


def weights_format(source: str, folder: Path) -> dict[str, bool]:
    """Return the option of `from_pretrained` that admits safetensors alone, unless told otherwise.

    Raises:
        ValueError: if a folder holds nothing but a pickle.
    """
    only_pickles = any(folder.glob("pytorch_model*.bin*")) and not any(folder.glob("*.safetensors"))
    if not pickles_allowed():
        if only_pickles:
            raise ValueError(_refusal(source))
        return {"use_safetensors": True}
    if only_pickles:
        warnings.warn(f"{source}: reading weights from a pickle", stacklevel=4)
    return {}


class _IndexReader(pickle.Unpickler):
    """Reads the index of a checkpoint in parts, and nothing that could do anything."""

    def find_class(self, module: str, name: str) -> object:
        """Return a class that an index is made of."""
        if name in _INDEX_CLASSES.get(module, ()):
            return super().find_class(module, name)
        if (
            module == "torch"
            and type(found := super().find_class(module, name)).__name__ == "dtype"
        ):
            return found
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def refuse_code_in(checkpoint: Path) -> None:
    """Look through the index of a checkpoint in parts (a folder), unless pickles are allowed.

    Any other checkpoint is not looked at: `torch.load` restricts it.

    Raises:
        ValueError: If reading the index would call what an index has no need of.
    """
    index = checkpoint / _INDEX
    if not index.is_file() or pickles_allowed():
        return
    try:
        with index.open("rb") as file:
            _IndexReader(file).load()
    except Exception as error:  # a hostile or broken pickle raises anything
        raise ValueError(
            f"{index}: not the index of a checkpoint, {error}; --allow_pickle=true reads it if you "
            "trust where it comes from"
        ) from error
