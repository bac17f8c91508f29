"""Write the model card of a fitted critic, in the hub's format: measures, settings, loading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_vcppo.critic_lab.measures import Measures
from lightning_vcppo.models.value_network import num_outputs
from lightning_vcppo.settings import ValueSettings

_TEXT = """\
# A critic for {base}

V(prompt and the tokens so far) estimates the reward at the end of a response of the policy. It was
fitted on Monte-Carlo returns of stored rollouts (value pretraining, arXiv 2503.01491), and measured
on prompts that it was never fitted on.

| held out | |
|---|---|
| responses, prompts | {responses}, {prompts} |
| R^2 | {r2:.3f} |
| its 95 % interval over prompts | {interval} |
| explained variance | {ev:.3f} |
| bias, mean of V - R | {bias:+.3f} |
| expected calibration error, Brier score | {ece}, {brier} |
| rank correlation with the pass rate | {rank} |
| right above wrong prefix of the same prompt, at 25, 50, 75 % | {auc} |
{warnings}
By position, from the first to the last tenth of a response, R^2: {deciles}

![values and returns by position](positions.png)

Policy of the rollouts: {origin}
Settings: {settings}

Fit: {fitted}

## Loading

{loading}"""
_BACKBONE = """\
```python
from transformers import AutoModelForTokenClassification

critic = AutoModelForTokenClassification.from_pretrained("{name}", num_labels={labels})
```

{head}

* lightning-vcppo: `vcppo fit --config vcppo --model.critic {name} ...`
"""
_OTHERS = """\
* verl: `vcppo export --ckpt_path {name} --output verl --layout verl`, then
  `critic.model.path=verl/critic`
* NeMo-RL: `vcppo export --ckpt_path {name} --output nemo --layout nemo`, then
  `ppo.warm_start_value_checkpoint=nemo/step_0`
* OpenRLHF: `vcppo export --ckpt_path {name} --output openrlhf --layout openrlhf`, then
  `--critic.model_name_or_path openrlhf/critic`, and the flag that the command names
"""
_NO_OTHERS = """\
* verl, NeMo-RL and OpenRLHF expect one output for each token and cannot load this head;
  `value.head: scalar` fits a critic that they can load.
"""
_PRIVILEGED = """
Before each prompt it reads a hint that the policy does not see: `value.privileged_prompt:
{privileged}`, at most {length} tokens. Its values are not meaningful without the hint.
"""
_SIDE = """\
It has no backbone: it reads the activations of the actor, and works only with this actor.

```python
from lightning_vcppo.models.critic import load_critic
from lightning_vcppo.settings import ValueSettings

critic = load_critic("{name}", ValueSettings(architecture="side", head="{head_name}")).attach(actor)
```
"""
_HEADS = {
    "scalar": "The output is V of the state *after* each token.",
    "bounded": "V = low + (high - low) (1/2 + arctan(output) / pi), bounds in `value_head`.",
    "sigmoid": "V = low + (high - low) sigmoid(output), bounds in `value_head`.",
    "hl_gauss": "V is the mean of the bins' centres under softmax(outputs), see `value_head`.",
}


def write_card(
    directory: Path,
    base: str,
    measures: Measures,
    settings: Mapping[str, Any],
    origin: Mapping[str, Any],
    value: ValueSettings,
    *,
    fitted: str,
    warnings: Sequence[str] = (),
) -> None:
    """Write `README.md` and the figure of values by position to the directory of a critic.

    Args:
        directory: Directory of the critic.
        base: Directory or hub id of the backbone.
        measures: Measures on held-out prompts.
        settings: Settings of the fit.
        origin: Origin of the rollouts.
        value: The head and its loss.
        fitted: Length of the fit, in words.
        warnings: Reasons not to use the critic.
    """
    header = {
        "library_name": "transformers",
        "pipeline_tag": "token-classification",
        "base_model": base,
        "tags": ["critic", "value-function", "lightning-vcppo"],
    }
    text = _TEXT.format(
        base=base,
        name=directory.name,
        responses=measures.responses,
        prompts=measures.prompts,
        r2=measures.r2,
        interval=_interval(measures.r2_interval),
        warnings="".join(f"\n**Warning**: {warning}.\n" for warning in warnings),
        fitted=fitted,
        ev=measures.explained_variance,
        bias=measures.bias,
        ece=_number(measures.ece),
        brier=_number(measures.brier),
        rank=_number(measures.rank_correlation),
        auc=", ".join(_number(chance) for chance in measures.auc.values()),
        deciles=", ".join(f"{decile.r2:.2f}" for decile in measures.deciles),
        origin=", ".join(f"{key} {value}" for key, value in origin.items()) or "not known",
        settings=", ".join(f"{key}={value}" for key, value in settings.items()),
        loading=_loading(directory.name, value),
    )
    (directory / "README.md").write_text(
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n{text}", encoding="utf-8"
    )
    _draw(measures, directory / "positions.png")


def _loading(name: str, value: ValueSettings) -> str:
    """Return instructions for loading a critic of that kind."""
    if value.architecture == "side":
        return _SIDE.format(name=name, head_name=value.head)
    text = _BACKBONE.format(name=name, labels=num_outputs(value), head=_HEADS[value.head])
    if value.privileged_prompt == "none":
        return text + (_OTHERS.format(name=name) if value.head == "scalar" else _NO_OTHERS)
    kind, length = value.privileged_prompt, value.privileged_max_length
    return text + _PRIVILEGED.format(privileged=kind, length=length)


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


def _interval(interval: tuple[float, float] | None) -> str:
    return "not defined" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _draw(measures: Measures, path: Path) -> None:
    from lightning_vcppo.report.plotting import open_figure

    figure, ax = open_figure("Values by position", "share of the response", "reward")
    places = [(d + 0.5) / len(measures.deciles) for d in range(len(measures.deciles))]
    ax.plot(places, [d.mean_value for d in measures.deciles], marker="o", label="mean V")
    ax.plot(places, [d.mean_return for d in measures.deciles], linestyle="--", label="mean return")
    ax.legend(frameon=False)
    figure.savefig(path, dpi=120)
