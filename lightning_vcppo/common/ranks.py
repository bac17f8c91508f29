"""Find the number of this process in its run before the processes know each other."""

import os

LAUNCHERS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
"""Variables in which torchrun, Lightning and srun tell a process its number; the first counts."""


def own_rank() -> int:
    """Return the number of this process among those of the run; 0 where no launcher gave one."""
    return int(next((os.environ[name] for name in LAUNCHERS if name in os.environ), "0"))
