"""Load weights and checkpoints of others without running code.

A pickle runs code when it is read. Therefore weights are read only from safetensors, unless
`--allow_pickle` is set; checkpoints are read by `torch.load(weights_only=True)`; and the index of a
sharded checkpoint, which torch reads as a plain pickle, is checked first. See docs/security.md.
"""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path

ALLOW_PICKLE = "VCPPO_ALLOW_PICKLE"
"""Environment variable, which all processes of a run inherit; `--allow_pickle` sets it."""

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
    "torch": {"Size"},  # and its dtypes
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},  # Python 3.13
}
"""Classes in the index of a sharded checkpoint: places and sizes of tensors."""


def pickles_allowed() -> bool:
    """Return whether weights may be read from a pickle."""
    return os.environ.get(ALLOW_PICKLE, "") not in ("", "0", "false")


def _refusal(source: str) -> str:
    """Return the message about weights that exist only as a pickle."""
    return (
        f"{source}: its weights are a pickle (pytorch_model.bin), which can run code when it is "
        "read; expected safetensors: convert them, or load them with --allow_pickle=true "
        f"({ALLOW_PICKLE}=1) if you trust their source"
    )


def weights_format(source: str, directory: Path) -> dict[str, bool]:
    """Return the option of `from_pretrained` that refuses pickles, unless they are allowed.

    Raises:
        ValueError: If the only weights of a directory are a pickle, and pickles are not allowed.
    """
    has_pickles = any(directory.glob("pytorch_model*.bin*"))
    only_pickles = has_pickles and not any(directory.glob("*.safetensors"))
    if not pickles_allowed():
        if only_pickles:
            raise ValueError(_refusal(source))
        return {"use_safetensors": True}
    if only_pickles:
        warnings.warn(f"{source}: reading weights from a pickle", stacklevel=4)
    return {}


class _IndexReader(pickle.Unpickler):
    """Reads the index of a sharded checkpoint, and refuses anything that could run code."""

    def find_class(self, module: str, name: str) -> object:
        """Return a class of `_INDEX_CLASSES` or a dtype; refuse any other."""
        if name in _INDEX_CLASSES.get(module, ()):
            return super().find_class(module, name)
        if (
            module == "torch"
            and type(found := super().find_class(module, name)).__name__ == "dtype"
        ):
            return found
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def refuse_code_in(checkpoint: Path) -> None:
    """Check the index of a sharded checkpoint (a directory), unless pickles are allowed.

    Any other checkpoint needs no check: `torch.load` restricts it.

    Raises:
        ValueError: If reading the index would call anything that an index does not need.
    """
    index = checkpoint / _INDEX
    if not index.is_file() or pickles_allowed():
        return
    try:
        with index.open("rb") as file:
            _IndexReader(file).load()
    except Exception as error:  # a hostile or broken pickle raises anything
        raise ValueError(
            f"{index}: not the index of a checkpoint, {error}; --allow_pickle=true reads it anyway "
            "if you trust its source"
        ) from error
