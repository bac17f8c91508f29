"""Sample and grade responses for evaluation, with the same random numbers every time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lightning_vcppo.common.seeding import stream_seed
from lightning_vcppo.data.prompts import HELD_OUT, PromptBatch
from lightning_vcppo.rewards import verifier
from lightning_vcppo.rollouts.records import ResponseRecord, SavedResponse
from lightning_vcppo.rollouts.rollout import Rollout
from lightning_vcppo.settings import SamplingSettings


class Evaluator:
    """Samples and grades responses with the evaluation settings."""

    def __init__(self, sample: Callable[..., Rollout], settings: SamplingSettings) -> None:
        """Collect the parts.

        Args:
            sample: Samples a rollout from (batch, settings, *names of the random streams).
            settings: How responses are sampled.
        """
        self.sample, self.settings = sample, settings

    def evaluate(self, batch: PromptBatch) -> list[ResponseRecord]:
        """Sample and grade `num_generations` responses to each prompt."""
        return self._records(batch, self._rollout(batch))

    def predict(self, batch: PromptBatch, origin: dict[str, str | float]) -> list[SavedResponse]:
        """Do the same, and keep the tokens, so that a critic can be pretrained on them.

        Args:
            batch: Prompts.
            origin: What else the responses depend on, see `Sampler.origin`.
        """
        rollout = self._rollout(batch)
        return list(_with_tokens(self._records(batch, rollout), rollout, origin))

    def _stream(self, batch: PromptBatch) -> tuple[str, ...]:
        """Name the random streams of a set; its samples do not depend on the other sets."""
        named = batch.evaluation_set not in ("", HELD_OUT)
        return ("evaluation", batch.evaluation_set) if named else ("evaluation",)

    def _rollout(self, batch: PromptBatch) -> Rollout:
        return self.sample(batch, self.settings, *self._stream(batch))

    def _records(self, batch: PromptBatch, rollout: Rollout) -> list[ResponseRecord]:
        n, stream = self.settings.num_generations, self._stream(batch)
        return [
            ResponseRecord(
                evaluation_set=batch.evaluation_set,
                index=batch.indices[row // n],
                sample=row % n,
                seed=stream_seed(*stream, batch.indices[row // n], row % n),
                source=problem.source,
                year=problem.year,
                problem=problem.problem,
                answer=problem.answer,
                accepted=[*problem.accepted],
                answer_kind=problem.answer_kind,
                level=problem.level,
                subject=problem.subject,
                columns=problem.columns,
                response=rollout.responses[row],
                prediction=verifier.extract_answer(
                    rollout.responses[row],
                    formulas=verifier.has_formulas(problem.gold, problem.answer_kind),
                ),
                correct=bool(rollout.correct_B[row]),
                length=int(rollout.response_lengths_B[row]),
                finished=bool(rollout.finished_B[row]),
            )
            for row, problem in enumerate(rollout.problems)
        ]


def _with_tokens(
    records: list[ResponseRecord], rollout: Rollout, origin: dict[str, str | float]
) -> Iterator[SavedResponse]:
    """Yield the records of a rollout, with the tokens that value pretraining needs."""
    for row, record in enumerate(records):
        prompt = int(rollout.prompt_lengths_B[row])
        ids = rollout.input_ids_BL[row, : prompt + record.length].tolist()
        yield SavedResponse(
            **vars(record),
            prompt_ids=ids[:prompt],
            response_ids=ids[prompt:],
            reward=float(rollout.scores_B[row]),
            origin=origin,
        )
