"""Graded responses of all ranks, and the files that hold them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch.distributed as dist

from lightning_vcppo.rollout import ResponseRecord


def gather_records(records: list[ResponseRecord]) -> list[ResponseRecord]:
    """Return the records of all ranks, each once.

    Every rank must call it, and gets the same list.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return unique_records(records)
    of_ranks: list[list[ResponseRecord]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(of_ranks, records)
    return unique_records(record for of_rank in of_ranks for record in of_rank)


def unique_records(records: Iterable[ResponseRecord]) -> list[ResponseRecord]:
    """Keep the first record of each sample of each problem, in order of problem and sample.

    A distributed sampler repeats problems until every rank has as many; counted twice, they would
    shift the accuracy.
    """
    first: dict[tuple[int, int], ResponseRecord] = {}
    for record in records:
        first.setdefault((record.index, record.sample), record)
    return [first[key] for key in sorted(first)]


def write_records(path: Path, records: Iterable[ResponseRecord]) -> None:
    """Write records as JSON Lines, one object a line; the file appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.tmp")
    with unfinished.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")
    os.replace(unfinished, path)
