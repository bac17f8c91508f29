"""What the strategy flag needs beyond Lightning when two networks are trained in turn."""

from __future__ import annotations

from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, Strategy


def prepare_strategy(strategy: Strategy) -> None:
    """Make a strategy fit for actor and critic, or refuse it.

    DDP, as it comes, expects every parameter in every backward pass. Here the actor's parameters are
    not in the critic's, so DDP is told to look for the unused ones.

    Raises:
        ValueError: for strategies that cannot train two networks with two optimizers.
    """
    if isinstance(strategy, DDPStrategy):
        strategy._ddp_kwargs["find_unused_parameters"] = True  # read when the model is wrapped
    elif isinstance(strategy, DeepSpeedStrategy):
        raise ValueError(
            "--trainer.strategy=deepspeed: Lightning's DeepSpeed strategy takes one optimizer, and "
            "actor and critic have one each; use --trainer.strategy=ddp"
        )
    elif isinstance(strategy, FSDPStrategy):
        raise ValueError(
            "--trainer.strategy=fsdp: FSDP1 does not work with two networks in one module; "
            "use --trainer.strategy=ddp"
        )
