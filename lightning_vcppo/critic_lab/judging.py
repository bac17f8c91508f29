"""Judge fitted critics by continuations of the policy that wrote the rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lightning_vcppo.common.errors import require
from lightning_vcppo.critic_lab.branches import read_branches
from lightning_vcppo.critic_lab.continuations import Continued, Plan, continuations
from lightning_vcppo.critic_lab.measures import LAMBDAS
from lightning_vcppo.critic_lab.store import TokenStore
from lightning_vcppo.critic_lab.truth import Truth, judge
from lightning_vcppo.critic_lab.values import ValueReader, device_of
from lightning_vcppo.models import loading
from lightning_vcppo.models.checks import check_same_tokens
from lightning_vcppo.models.fingerprints import model_fingerprint
from lightning_vcppo.settings import SamplingSettings, ValueSettings


@dataclass(frozen=True)
class ActorOptions:
    """The policy, and the settings with which it continues stored responses.

    Attributes:
        actor: Directory or hub id of the policy.
        prefixes: Number of states that are continued.
        continuations: Number of continuations of each state, and of each state with its token.
        lambdas: Lambdas to compare.
        reward: Style of the verifier, or a reward function; it must be that of the rollouts.
        temperature: Temperature of sampling; None means that of the rollouts, or 1 if unknown.
        top_p: Top-p of sampling; None means that of the rollouts, or 1 if unknown.
        max_response_length: Largest number of response tokens; None means that of the rollouts, or
            the length of the longest stored response if unknown.
    """

    actor: str
    prefixes: int = 256
    continuations: int = 8
    lambdas: tuple[float, ...] = LAMBDAS
    reward: str = "boxed"
    temperature: float | None = None
    top_p: float | None = None
    max_response_length: int | None = None

    def __post_init__(self) -> None:
        """Refuse lambdas that cannot be compared."""
        require(
            len(set(self.lambdas)) == len(self.lambdas) >= 2
            and all(0 <= lam <= 1 for lam in self.lambdas),
            f"--lambdas: expected two or more different numbers in [0, 1], got {self.lambdas}",
        )

    def plan(self, store: TokenStore, origin: Mapping[str, Any], seed: int) -> Plan:
        """Return the plan of sampling, with the rollouts' settings for those that are None."""
        longest = max(store.response_lengths)
        usual = {"temperature": 1.0, "top_p": 1.0, "max_response_length": longest}
        given = {name: getattr(self, name) for name in usual}
        found = {
            name: value if given[name] is None else given[name]
            for name, value in (usual | {k: origin[k] for k in usual if k in origin}).items()
        }
        length = int(found["max_response_length"])
        require(
            length >= longest,
            f"--max_response_length: expected >= {longest}, the longest response of the rollouts, "
            f"got {length}",
        )
        sampling = SamplingSettings(
            temperature=float(found["temperature"]),
            top_p=float(found["top_p"]),
            max_response_length=length,
        )
        return Plan(self.prefixes, self.continuations, self.reward, sampling, seed)


def continue_rollouts(
    path: Path,
    store: TokenStore,
    origin: Mapping[str, Any],
    rows: Sequence[int],
    model: str,
    options: ActorOptions,
    seed: int,
) -> list[Continued]:
    """Continue stored responses with the policy that wrote them.

    Args:
        path: File of the continuations, which is read if it already has them.
        store: Store of the rollouts.
        origin: Policy and sampling settings that the rollouts record.
        rows: Responses that no critic was fitted on.
        model: Directory or hub id of the tokenizer that made missing token ids.
        options: The policy and its sampling.
        seed: Seed of states and continuations.

    Raises:
        ValueError: If the actor is not the policy of the rollouts, or has other tokens, or the
            rollouts cannot be graded.
    """
    tokenizer = loading.load_tokenizer(options.actor)
    check_same_tokens(tokenizer, loading.load_tokenizer(model), model)
    actor = loading.load_actor(options.actor)
    fingerprint = model_fingerprint(actor)
    require(
        origin.get("model") in (None, fingerprint),
        f"--actor: {options.actor} is not the policy of the rollouts, whose rewards the critics "
        "learned; name that policy",
    )
    actor.to(device_of(None))  # type: ignore[arg-type]
    plan = options.plan(store, origin, seed)
    found = continuations(path, store, rows, actor, fingerprint, tokenizer, plan)
    del actor
    if torch.cuda.is_available():  # the critics are fitted next
        torch.cuda.empty_cache()
    return found


def judge_fits(
    fits: Sequence[Mapping[str, Any]],
    directories: Sequence[Path],
    store: TokenStore,
    continued: Sequence[Continued],
    options: ActorOptions,
    seed: int,
) -> list[Truth]:
    """Judge fitted critics, one after the other, each on the same continuations.

    Args:
        fits: Contents of the `fit.json` of each critic.
        directories: Directory of each critic.
        store: Store of the rollouts.
        continued: States and their continuations.
        options: The policy and the lambdas.
        seed: Seed of the bootstrap.
    """
    actor: PreTrainedModel | None = None
    truths = []
    for fit, directory in zip(fits, directories, strict=True):
        settings = ValueSettings(**fit["value"])
        if settings.architecture == "side" and actor is None:
            actor = loading.load_actor(options.actor)
            loading.disable_dropout(actor.train())
        reader = ValueReader(str(directory), store, settings=settings, actor=actor)
        branches = read_branches(continued, store, reader, options.lambdas)
        truths.append(judge(branches, options.lambdas, seed))
    return truths
