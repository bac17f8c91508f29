"""What the strategy flag needs beyond Lightning when two networks are trained in turn."""

from __future__ import annotations

from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, Strategy

from lightning_vcppo.settings import require

REFUSED = {
    "deepspeed": (
        "Lightning's DeepSpeed strategy takes one optimizer, and actor and critic have one each"
    ),
    "fsdp": "FSDP1 does not work with two networks in one module",
}
"""Strategies that cannot train two networks with two optimizers, and why."""


def refuse_strategy(name: object) -> None:
    """Refuse a strategy by its flag, before Lightning looks for its library or for a GPU.

    Raises:
        ValueError: for the strategies of `REFUSED` and their variants (`deepspeed_stage_2`).
    """
    for refused, reason in REFUSED.items():
        require(
            not str(name).startswith(refused),
            f"--trainer.strategy={name}: {reason}; use --trainer.strategy=ddp",
        )


def prepare_strategy(strategy: Strategy) -> None:
    """Make a strategy fit for actor and critic, or refuse it.

    DDP, as it comes, expects every parameter in every backward pass. Here the actor's are not in
    the critic's, so DDP is told to look for the unused ones.

    Raises:
        ValueError: for strategies that cannot train two networks with two optimizers.
    """
    if isinstance(strategy, DDPStrategy):
        strategy._ddp_kwargs["find_unused_parameters"] = True  # read when the model is wrapped
    elif isinstance(strategy, DeepSpeedStrategy):
        refuse_strategy("deepspeed")
    elif isinstance(strategy, FSDPStrategy):
        refuse_strategy("fsdp")
