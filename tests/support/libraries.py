"""What the server of processes imports before it forks: most of the start of every command."""

import torch.distributed.fsdp
import torch.distributed.tensor  # noqa: F401
import transformers.models.qwen2.modeling_qwen2  # noqa: F401

import tests.support.training  # noqa: F401
from lightning_vcppo import callbacks
from lightning_vcppo.cli import lightning_cli  # noqa: F401

for name in callbacks.__all__:
    getattr(callbacks, name)
