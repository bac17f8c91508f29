"""Run `vcppo import`: convert rollouts of another trainer to a file of this package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_vcppo.common.errors import OneLineArguments, require
from lightning_vcppo.common.terminal import waiting_for


def main(arguments: Sequence[str]) -> None:
    """Run `vcppo import`.

    Args:
        arguments: Arguments after the command's name.

    Raises:
        ValueError: If rows cannot be read, or the responses have no rewards.
        OSError: If a file cannot be read or written.
    """
    options = _parser().parse_args(arguments)
    limit = options.max_response_length
    require(
        limit is None or limit > 0,
        f"--max_response_length={limit}: expected a positive number of tokens",
    )
    with waiting_for("Loading"):  # the imports include torch
        from lightning_vcppo.data.sources import load_problems
        from lightning_vcppo.interchange import Importer, read_responses
        from lightning_vcppo.interchange.reading import Reading
        from lightning_vcppo.interchange.schemas import Fields
        from lightning_vcppo.models.loading import load_tokenizer
        from lightning_vcppo.rewards.functions import Grader
        from lightning_vcppo.rewards.signatures import Reads
        from lightning_vcppo.rollouts.records import write_records

    reading = Reading()
    reads = Grader(options.reward).reads if options.reward else Reads()
    problems = load_problems(options.problems, reads=reads) if options.problems else ()
    importer = Importer(
        load_tokenizer(options.model) if options.model else None,
        reward=options.reward,
        problems=problems,
        max_response_length=options.max_response_length,
        reading=reading,
    )
    responses = read_responses(
        options.files,
        Fields(options.prompt_field, options.response_field, options.reward_field),
        drop_invalid=options.drop_invalid,
        reading=reading,
        vocabulary=_vocabulary(options.model) if options.model else None,
    )
    with waiting_for("Importing"):
        write_records(options.output, importer.records(responses))
    print("\n".join(importer.report.lines()))
    print(f"The rollouts are in {options.output}")


def _vocabulary(model: str) -> int | None:
    """Return the number of tokens of a model; None for a tokenizer without one."""
    from lightning_vcppo.models.loading import load_config

    try:
        size = getattr(load_config(model).get_text_config(), "vocab_size", None)
    except (OSError, ValueError):
        return None
    return int(size) if size else None


def _parser() -> OneLineArguments:
    parser = OneLineArguments(
        "vcppo import",
        description="Convert rollouts of verl, TRL, NeMo-RL, OpenRLHF, SkyRL, prime-rl, verifiers, "
        "vLLM's or OpenAI's batches, or plain rows, to a file of this package.",
    )
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="files, patterns or directories")
    add("--output", type=Path, required=True, help="file to write, JSON Lines")
    add("--model", help="directory or hub id of the tokenizer for missing token ids")
    add("--reward", help="grade again, with a style of the verifier or the path of a function")
    add("--problems", help="file or hub id of the problems with answers, for grading")
    add("--max_response_length", type=int, help="length at which responses were truncated")
    add("--prompt_field", help="field of a plain row with the prompt")
    add("--response_field", help="field of a plain row with the response")
    add("--reward_field", help="field of a row with the reward")
    parser.add_switch("--drop_invalid", "skip rows that cannot be read")
    return parser
