"""Keep small updates of bfloat16 weights (`--model.master_weights`).

A bfloat16 number has eight bits, so a step of less than 2^-9 of a weight is rounded away: at a
learning rate of 1e-6 that is the step of almost every weight. There are three ways to keep it:

    float32     the step is made on a float32 copy of each weight; the model gets it rounded
    kahan       the rounding error is kept in bfloat16 and added before the next step, as in
                Kahan's compensated summation
    stochastic  nothing is kept: a weight is rounded up or down at random, unbiased on average

In all three the optimizer itself sees float32 weights and gradients, and its state is float32. In
bfloat16 the second moment of Adam would never fall: at beta2 = 0.999 it is a thousandth a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from typing_extensions import override

from lightning_vcppo.checkpointing.format import Keys
from lightning_vcppo.common.errors import require
from lightning_vcppo.common.seeding import stream_seed
from lightning_vcppo.distributed.fsdp2 import FSDP2Strategy
from lightning_vcppo.settings import MasterWeights

KEPT: dict[MasterWeights, str] = {"float32": "master_weight", "kahan": "compensation"}
"""Name of the tensor that is kept next to the optimizer's own state of a weight."""
WEIGHTS_AT_ONCE = 2**25
"""Most weights that are in float32 at once during a step, unless one tensor has more."""


def require_master_weights(kind: MasterWeights, trainer: Trainer) -> None:
    """Refuse master weights if the weights are not bfloat16, or are sharded.

    Raises:
        ValueError: For another precision than `bf16-true`, or for `fsdp2`.
    """
    if kind == "none":
        return
    flag, precision = f"--model.master_weights={kind}", str(trainer.precision)
    require(
        not isinstance(trainer.strategy, FSDP2Strategy),
        f"{flag}: not supported with fsdp2; use --trainer.precision=bf16-mixed instead, under "
        "which fsdp2 keeps sharded float32 weights and computes in bfloat16",
    )
    require(
        precision == "bf16-true",
        f"{flag}: expected --trainer.precision=bf16-true, got {precision}, under which weights are "
        "not bfloat16",
    )


def require_same_master_weights(checkpoint: dict[str, Any], kind: MasterWeights) -> None:
    """Refuse a checkpoint of a run with other master weights.

    Raises:
        ValueError: For another kind than the checkpoint's; the message names that.
    """
    saved = checkpoint.get(Keys.MASTER_WEIGHTS, "none")
    require(
        saved == kind,
        f"--model.master_weights: the checkpoint was trained with {saved}, got {kind}",
    )


class PreciseOptimizer(torch.optim.Optimizer):
    """Steps bfloat16 parameters with an optimizer of float32 parameters.

    The inner optimizer has a float32 stand-in for each parameter, which takes memory only while it
    is stepped, a few at a time. So an optimizer whose step connects all parameters, such as LBFGS,
    does not work. Parameters in float32 are stepped as they are.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        kind: MasterWeights,
        build: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        seed: int,
    ) -> None:
        """Build the inner optimizer; what is kept of a weight is created at its first step.

        Args:
            parameters: Parameters to train.
            kind: Way to keep small updates; not "none".
            build: Returns an optimizer, with one group, of the given parameters.
            seed: Seed of stochastic rounding.
        """
        self._stand_ins = [nn.Parameter(_no_memory(parameter)) for parameter in parameters]
        self._inner = build(self._stand_ins)
        self._kind: MasterWeights = kind
        (options,) = self._inner.param_groups
        super().__init__(list(parameters), {})
        own = {"steps_done": 0, "rounding_seed": seed}
        self.param_groups[0].update({k: v for k, v in options.items() if k != "params"} | own)

    @property
    def states(self) -> list[dict[Any, dict[str, Any]]]:
        """Tensors kept by parameter, and the state of the inner optimizer."""
        return [self.state, self._inner.state]

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step all parameters that have a gradient."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        (group,) = self.param_groups
        self._inner.param_groups[0].update({k: v for k, v in group.items() if k != "params"})
        for indices in self._portions(group["params"]):
            for i in indices:
                parameter, stand_in = group["params"][i], self._stand_ins[i]
                stand_in.data = self._precise(parameter)
                stand_in.grad = parameter.grad.to(stand_in.dtype)
            self._inner.step()
            for i in indices:
                parameter, stand_in = group["params"][i], self._stand_ins[i]
                self._write(parameter, stand_in.data, (group["steps_done"], i))
                stand_in.data, stand_in.grad = _no_memory(parameter), None
        group["steps_done"] += 1
        return result

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the inner optimizer's state and what is kept, by the parameter's index."""
        (group,) = self.param_groups
        state = self._inner.state_dict()["state"]
        for i, parameter in enumerate(group["params"]):
            if parameter in self.state:
                state[i] = {**state.get(i, {}), **self.state[parameter]}
        numbers = list(range(len(group["params"])))
        return {"state": state, "param_groups": [{**group, "params": numbers}]}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` has returned."""
        (group,), (saved,) = self.param_groups, state_dict["param_groups"]
        kept = {
            i: {key: value for key, value in values.items() if key in KEPT.values()}
            for i, values in state_dict["state"].items()
        }
        rest = {
            i: {key: value for key, value in values.items() if key not in kept[i]}
            for i, values in state_dict["state"].items()
        }
        self._inner.load_state_dict({"state": rest, "param_groups": [saved]})
        group.update({key: value for key, value in saved.items() if key != "params"})
        self.state.clear()
        for i, values in kept.items():
            parameter = group["params"][i]
            if values:
                self.state[parameter] = {k: v.to(parameter.device) for k, v in values.items()}

    def _portions(self, parameters: Sequence[Tensor]) -> Iterator[list[int]]:
        """Yield the indices of parameters with gradients, in portions of `WEIGHTS_AT_ONCE`."""
        portion: list[int] = []
        size = 0
        for i, parameter in enumerate(parameters):
            if parameter.grad is None:
                continue
            if portion and size + parameter.numel() > WEIGHTS_AT_ONCE:
                yield portion
                portion, size = [], 0
            portion.append(i)
            size += parameter.numel()
        if portion:
            yield portion

    def _precise(self, parameter: Tensor) -> Tensor:
        """Return a parameter in float32, with what rounding took away added again."""
        if parameter.dtype.itemsize >= 4:
            return parameter.data
        if self._kind == "stochastic":
            return parameter.data.float()
        kept, name = self.state[parameter], KEPT[self._kind]
        if self._kind == "float32":
            if name not in kept:
                kept[name] = parameter.data.float()
            master: Tensor = kept[name]
            return master
        if name not in kept:
            kept[name] = torch.zeros_like(parameter.data)
        precise: Tensor = parameter.data.float() + kept[name].float()
        return precise

    def _write(self, parameter: Tensor, stepped: Tensor, step: tuple[int, int]) -> None:
        """Write a parameter's new value, and keep what the next step needs."""
        if parameter.dtype.itemsize >= 4:
            return  # it was stepped in place
        if self._kind == "stochastic":
            seed = stream_seed("rounding", self.param_groups[0]["rounding_seed"], *step)
            generator = torch.Generator(parameter.device).manual_seed(seed)
            parameter.copy_(round_stochastically(stepped, generator))
            return
        parameter.copy_(stepped)
        if self._kind == "kahan":
            self.state[parameter][KEPT["kahan"]].copy_(stepped - parameter.float())


def round_stochastically(numbers: Tensor, generator: torch.Generator) -> Tensor:
    """Round float32 to bfloat16, up or down with probabilities that keep the mean.

    A bfloat16 is the upper half of a float32. If a random number below 2^16 is added to the lower
    half, the probability of a carry into the upper half is proportional to the lower half.
    """
    noise = torch.randint(
        2**16, numbers.shape, dtype=torch.int32, device=numbers.device, generator=generator
    )
    upper = noise.add_(numbers.view(torch.int32)).bitwise_and_(-(2**16))
    rounded: Tensor = upper.view(torch.float32).to(torch.bfloat16)
    return rounded


def _no_memory(parameter: Tensor) -> Tensor:
    """Return a tensor of a parameter's shape, in float32 at least, that takes no memory."""
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return torch.zeros((), dtype=dtype, device=parameter.device).expand(parameter.shape)
