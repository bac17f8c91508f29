"""The same run over one, two and four processes, by DDP and by FSDP2; and going on with others."""

import json
import math
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.support.rank_run import RUNS, WELL
from tests.support.tiny_runs import ROOT, assert_finite, logged

THOROUGH = pytest.mark.thorough
MANY = [
    "ddp_2",
    *(pytest.param(name, marks=THOROUGH) for name in ("fsdp2_2", "ddp_4", "fsdp2_4")),
]
RESUMED = [
    ("ddp_2", "ddp_2_waiting"),
    pytest.param("fsdp2_2", "fsdp2_2_pretraining", marks=THOROUGH),
    pytest.param("ddp_2", "ddp_2_pretraining", marks=THOROUGH),
    pytest.param("fsdp2_2", "fsdp2_2_waiting", marks=THOROUGH),
]
ELSEWHERE = [
    "ddp_2_to_1",
    *(pytest.param(name, marks=THOROUGH) for name in ("fsdp2_2_to_1", "ddp_2_to_offload_2")),
]
NEEDS = {"saved": "predict", "validate": "saved"}
"""Commands that read what others have left."""


class Runs:
    """Runs that are done when they are first asked for.

    Their processes are forks of one that has never been in a process group, as pytest's own may
    have been, and has no threads.

    Args:
        actor: Directory of the tiny actor.
        directory: Where they write.
    """

    def __init__(self, actor, directory):
        self._root, self._done = directory, {}
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.support.rank_run", str(actor), str(directory), "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def directory(self, name):
        """Return the directory of a run."""
        if name not in self._done:
            self._do(name)
        return self._root / name

    def __getitem__(self, name):
        """Return what each process of a run had at the end."""
        directory = self.directory(name)
        if self._done[name] is None:
            paths = [directory / f"{rank}.pt" for rank in range(RUNS[name].ranks)]
            self._done[name] = [torch.load(path, weights_only=True) for path in paths]
        return self._done[name]

    def _do(self, name):
        resume = RUNS[name].resume if name in RUNS else None
        needed = resume[0] if resume else NEEDS.get(name)
        if needed:
            self.directory(needed)
        self.server.stdin.write(f"{name}\n")
        self.server.stdin.flush()
        if self.server.stdout.readline().strip() != WELL:
            logs = [path.read_text()[-3000:] for path in (self._root / name).glob("*.log")]
            pytest.fail("\n".join(["failed or hung", *(x for x in logs if "Traceback" in x)]))
        self._done[name] = None


@pytest.fixture(scope="module")
def runs(tiny_actor, tmp_path_factory):
    """Return the runs of this file, by name."""
    runs = Runs(tiny_actor, tmp_path_factory.mktemp("ranks"))
    yield runs
    runs.server.communicate(timeout=60)


def responses(of_ranks):
    """Return the responses of each rollout, in the order of ranks."""
    by_rollout = zip(*(rank["responses"] for rank in of_ranks), strict=True)
    return [[response for rank in rollout for response in rank] for rollout in by_rollout]


def difference(weights, others):
    """Return the largest difference of two networks, relative to the largest weight."""
    return float((weights - others).abs().max() / weights.abs().max())


@pytest.mark.parametrize("name", MANY)
def test_all_ranks_hold_the_same_weights(runs, name):
    first, *others = runs[name]
    for other in others:
        assert torch.equal(first["actor"], other["actor"])
        assert torch.equal(first["critic"], other["critic"])


@pytest.mark.parametrize("name", MANY)
def test_ranks_together_sample_the_responses_of_one(runs, name):
    alone = responses(runs["one"])
    assert len(alone) == 4 and responses(runs[name]) == alone
    parts = [rank["responses"] for rank in runs[name]]
    assert all(part != parts[0] for part in parts[1:])


@pytest.mark.thorough
@pytest.mark.parametrize("name", MANY + ELSEWHERE)
def test_ranks_reach_the_weights_of_one(runs, name):
    for network in ("actor", "critic"):
        assert difference(runs["one"][0][network], runs[name][0][network]) < 1e-10


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    ["successors_ddp_2", pytest.param("successors_fsdp2_2", marks=THOROUGH), "side_ddp_2"],
)
def test_ranks_reach_the_weights_of_one_with_the_switches_of_later_recipes(runs, name):
    one = f"{name.partition('_')[0]}_one"
    alone, together = runs[one][0], runs[name][0]
    assert responses(runs[name]) == responses(runs[one])
    assert difference(alone["actor"], runs["one"][0]["actor"]) > 1e-4
    for network in ("actor", "critic"):
        assert difference(alone[network], together[network]) < 1e-10
    for key, value in alone["metrics"].items():
        if not key.startswith(("time/", "rollout/tokens_per_second")):
            assert together["metrics"][key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


@THOROUGH
def test_ranks_reach_the_weights_of_one_in_single_precision(runs):
    name = "fsdp2_2_32"
    assert responses(runs[name]) == responses(runs["one_32"])
    for network in ("actor", "critic"):
        assert difference(runs["one_32"][0][network], runs[name][0][network]) < 1e-5


@pytest.mark.parametrize("name", MANY)
def test_ranks_log_the_metrics_of_one(runs, name):
    alone, together = runs["one"][0]["metrics"], runs[name][0]["metrics"]
    assert alone.keys() == together.keys()
    for key in alone:
        if not key.startswith(("time/", "rollout/tokens_per_second", "mismatch/")):
            assert together[key] == pytest.approx(alone[key], rel=1e-4, abs=1e-6), key


def numbers(value):
    """Return all numbers of a JSON value, depth first."""
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [] if isinstance(value, str) else [math.nan if value is None else value]


@pytest.mark.parametrize("file", ["positions", "calibration"])
@pytest.mark.parametrize("name", MANY)
def test_ranks_write_the_diagnostics_of_one(runs, name, file):
    alone, together = (
        (runs.directory(run) / "diagnostics" / f"{file}.jsonl").read_text() for run in ("one", name)
    )
    assert alone.count("\n") == together.count("\n") == 4
    for line, other in zip(alone.splitlines(), together.splitlines(), strict=True):
        assert numbers(json.loads(other)) == pytest.approx(
            numbers(json.loads(line)), rel=1e-4, abs=1e-6, nan_ok=True
        )


@pytest.mark.parametrize(("whole", "name"), RESUMED)
def test_a_resumed_run_of_as_many_ranks_equals_an_uninterrupted_one(runs, whole, name):
    for rank, resumed in zip(runs[whole], runs[name], strict=True):
        assert torch.equal(rank["actor"], resumed["actor"])
        assert torch.equal(rank["critic"], resumed["critic"])
        assert 1 <= len(resumed["responses"]) < 4
        assert resumed["responses"] == rank["responses"][-len(resumed["responses"]) :]


@pytest.mark.parametrize("name", ELSEWHERE[:2])
def test_a_run_that_goes_on_with_other_ranks_says_so(runs, name):
    log = (runs.directory(name) / "0.log").read_text()
    assert "The checkpoint was written by 2 processes, and this run has 1: " in log


def test_ddp_exchanges_the_gradients_of_the_network_that_is_updated_alone(runs):
    exchanged, expected = runs["ddp_2_waiting"][0]["exchanged"]
    assert exchanged == expected and min(expected.values()) > 0


@THOROUGH
@pytest.mark.parametrize("network", ["actor", "critic"])
def test_shards_are_written_as_an_ordinary_directory(runs, network):
    plain, gathered = (runs.directory(name) / network for name in ("one", "fsdp2_2"))
    configs = [json.loads((place / "config.json").read_text()) for place in (plain, gathered)]
    assert configs[0] == configs[1]
    plain, gathered = (load_file(place / "model.safetensors") for place in (plain, gathered))
    assert plain.keys() == gathered.keys()
    for name, weight in plain.items():
        torch.testing.assert_close(weight, gathered[name])


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    ["cold_start", pytest.param("reward_model", marks=THOROUGH), "saved", "reader"],
)
def test_every_module_trains_with_shards(runs, name):
    assert_finite(runs.directory(name))


@THOROUGH
@pytest.mark.parametrize("name", ["preset_ddp", "preset_fsdp2"])
def test_ranks_with_other_numbers_of_micro_batches_do_the_same(runs, name):
    assert_finite(runs.directory(name))
    assert len([row for row in logged(runs.directory(name)) if "rollout/accuracy" in row]) == 3


@THOROUGH
def test_shards_predict_and_fit_on_what_they_have_predicted(runs):
    lines = (runs.directory("predict").parent / "rollouts.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(25))
    saved = [row for row in logged(runs.directory("saved")) if "rollout/accuracy" in row]
    assert len(saved) == 3 and saved[1]["value_pretraining/generated_tokens"] == 0


@pytest.mark.thorough
def test_a_sharded_checkpoint_is_evaluated(runs):
    (row,) = logged(runs.directory("validate") / "validate")
    assert (row["step"], row["eval/problems"]) == (3, 2)
