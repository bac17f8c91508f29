"""Run complete iterations of TRL's PPOTrainer on a reference workload, for comparison.

It needs the extra `bench`. TRL 0.29.1 gets its best settings, so that the comparison favours it:
float32 like ours, no gradient checkpointing, a reward that costs nothing. It has no switch
for the reference policy: its log-probabilities are computed even if the KL coefficient is 0.

Shapes: B sequences, L tokens of prompt + response.
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
import warnings
from collections.abc import Iterator
from time import perf_counter
from types import SimpleNamespace
from typing import Any

from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from benchmarks.measure import Workload, word_tokenizer


class LengthReward(nn.Module):
    """A reward that costs nothing, in the form of a reward model: +1 or -1 by the length's parity.

    It also counts tokens, because it sees the responses cut at their <eos>.
    """

    base_model_prefix = "backbone"

    def __init__(self, pad_token_id: int, prompt_length: int) -> None:
        """Store the padding id and the prompt length, which locate the response."""
        super().__init__()
        self.pad_token_id, self.prompt_length = pad_token_id, prompt_length
        self.response_tokens = 0

    def backbone(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> SimpleNamespace:
        """Stand in for a transformer's forward pass."""
        length_B = attention_mask[:, self.prompt_length :].sum(1)
        self.response_tokens = int(length_B.sum())
        rewards_BL1 = (1.0 - 2.0 * (length_B % 2))[:, None, None].expand(*input_ids.shape, 1)
        return SimpleNamespace(hidden_states=[rewards_BL1])

    def score(self, hidden_BL1: Tensor) -> Tensor:
        """Stand in for the head."""
        return hidden_BL1


class TRLIteration:
    """One PPO iteration per call: a response to each prompt, scores, one epoch of one mini-batch.

    Attributes:
        tokens: Response tokens of each call, including <eos>.
        generate_seconds: Seconds of TRL in `generate`, for each call.
    """

    def __init__(
        self, work: Workload, output_dir: str, micro_batch_size: int | None = None
    ) -> None:
        """Build the trainer.

        Args:
            work: The workload.
            output_dir: Directory that TRL requires; nothing is written to it.
            micro_batch_size: Responses of one forward pass in the update; None means all.
        """
        self.tokens: list[int] = []
        self.generate_seconds: list[float] = []
        with quietly():
            self._trainer, self._reward = build_trainer(work, output_dir, micro_batch_size)
        policy = self._trainer.policy_model
        generate = policy.generate

        def timed_generate(*args: Any, **kwargs: Any) -> Any:
            began = perf_counter()
            generated = generate(*args, **kwargs)
            self.generate_seconds.append(perf_counter() - began)
            return generated

        policy.generate = timed_generate

    def __call__(self) -> None:
        """Do one iteration."""
        with quietly():
            self._trainer.train()  # `total_episodes` makes it one iteration
        self.tokens.append(self._reward.response_tokens)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Suppress the messages and warnings of TRL."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def build_trainer(
    work: Workload, output_dir: str, micro_batch_size: int | None
) -> tuple[Any, LengthReward]:
    """Build the PPOTrainer of a workload and its reward model."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    try:
        from trl.experimental.ppo import PPOConfig, PPOTrainer
    except ImportError as error:
        raise SystemExit(f"TRL is not installed; run pip install -e '.[bench]' ({error})") from None
    size = len(work.prompts)
    micro_batch_size = micro_batch_size or size
    # TRL identifies padding by its id, so the policy must not be able to sample it.
    tokenizer = word_tokenizer(work, pad_token_id=work.config.vocab_size + 1)
    ends = work.eos_token_id < work.config.vocab_size
    settings = PPOConfig(
        output_dir=output_dir,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=micro_batch_size,
        gradient_accumulation_steps=size // micro_batch_size,
        num_mini_batches=1,
        num_ppo_epochs=1,
        total_episodes=size,
        local_rollout_forward_batch_size=size,
        response_length=work.max_response_length,
        temperature=1.0,
        stop_token="eos" if ends else None,
        kl_coef=0.0,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        num_sample_generations=0,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    policy = work.model()
    policy.generation_config.pad_token_id = work.eos_token_id if ends else None
    reward = LengthReward(tokenizer.pad_token_id, len(work.prompts[0]))
    value_config = copy.deepcopy(work.config)
    value_config.num_labels = 1
    value = AutoModelForSequenceClassification.from_config(value_config)
    trainer = PPOTrainer(
        args=settings,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,  # a copy of the policy
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": work.prompts}),
        eval_dataset=Dataset.from_dict({"input_ids": work.prompts}),
    )
    return trainer, reward
