"""Small updates of bfloat16 weights (`--model.master_weights`).

A bfloat16 number has eight bits, so a step of less than 2^-9 of a weight is rounded away: at a
learning rate of 1e-6 that is the step of almost every weight. Three ways keep it:

    float32     a float32 copy of each weight takes the step; the model gets it rounded
    kahan       what rounding took away is kept in bfloat16 and added before the next step, as in
                Kahan's compensated summation
    stochastic  nothing is kept: a weight is rounded up or down at random, right on average

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
"""Name of what is kept beside the optimizer's own state of a weight."""
WEIGHTS_AT_ONCE = 2**25
"""Weights that are in float32 at once while they are stepped, unless one tensor has more."""


def require_master_weights(kind: MasterWeights, trainer: Trainer) -> None:
    """Refuse master weights where the weights are not bfloat16, or sharded.

    Raises:
        ValueError: If precision or strategy is another one.
    """
    if kind == "none":
        return
    flag, precision = f"--model.master_weights={kind}", str(trainer.precision)
    require(
        not isinstance(trainer.strategy, FSDP2Strategy),
        f"{flag}: not with fsdp2, whose weights are float32 and sharded, and computed with in "
        "bfloat16, under --trainer.precision=bf16-mixed; use that",
    )
    require(
        precision == "bf16-true",
        f"{flag}: expected --trainer.precision=bf16-true, got {precision}, whose weights are not "
        "bfloat16",
    )


def require_same_master_weights(checkpoint: dict[str, Any], kind: MasterWeights) -> None:
    """Refuse a checkpoint whose optimizers keep something else.

    Raises:
        ValueError: With the flag of the run that wrote it.
    """
    saved = checkpoint.get(Keys.MASTER_WEIGHTS, "none")
    require(
        saved == kind,
        f"--model.master_weights: the checkpoint was trained with {saved}, not {kind}; give that",
    )


class PreciseOptimizer(torch.optim.Optimizer):
    """Steps bfloat16 parameters with an optimizer of float32 ones.

    The optimizer within has a stand-in for each parameter, which has memory only while a few of
    them are stepped. So an optimizer whose step connects all parameters, such as LBFGS, is not for
    this. Parameters in float32 are stepped as they are.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        kind: MasterWeights,
        build: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        seed: int,
    ) -> None:
        """Build the optimizer within; what is kept of a weight begins with its first step.

        Args:
            parameters: Trained ones.
            kind: What keeps small updates; not "none".
            build: Returns an optimizer, with one group, of parameters of the same shapes.
            seed: Of stochastic rounding.
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
        """What is kept of parameters, and the state of the optimizer within."""
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
        """Return the state of the optimizer within and what is kept, by the number of parameter."""
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
        """Yield the numbers of parameters with gradients, as many as are in float32 at once."""
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
        """Return a parameter as it would be if nothing had been rounded."""
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
        """Give a parameter its new value, and keep what the next step needs."""
        if parameter.dtype.itemsize >= 4:
            return  # it has been stepped itself
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

    A bfloat16 is the upper half of a float32. A random number below 2^16 that is added to the lower
    half carries into the upper one as often as the lower half is large.
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
