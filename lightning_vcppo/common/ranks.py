"""Find the rank of this process before the processes are connected."""

import os

LAUNCHERS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
"""Variables in which torchrun, Lightning and srun set the rank; the first one found counts."""


def own_rank() -> int:
    """Return the rank of this process; 0 if no launcher has set one."""
    return int(next((os.environ[name] for name in LAUNCHERS if name in os.environ), "0"))
