"""The delayed choice: its reward, its commands, and what a run adds to the results."""

import itertools

import pytest

from experiments import delayed_choice
from lightning_vcppo.data.generator import ProblemSettings, generate_problems
from tests.support.configs import printed


@pytest.mark.parametrize("rough_rate", [0.0, 1.0])
def test_the_method_is_rewarded_if_the_count_comes_to_its_end(rough_rate):
    settings = ProblemSettings(["count"], 3, 12, rough_rate=rough_rate)
    for problem in generate_problems(20, settings, seed=0):
        response = f"<think>\n{problem.solution}"
        expected = -1.0 if rough_rate else 1.0
        assert delayed_choice.chose_exact(response, problem.answer) == expected
        unfinished = response[: response.index("001:")]
        assert delayed_choice.chose_exact(unfinished, problem.answer) == -1.0


def test_slips_do_not_matter_and_an_empty_response_is_wrong():
    assert delayed_choice.chose_exact("<think>\nexact\n000:999\n</think>", 3) == 1.0
    assert delayed_choice.chose_exact("", 3) == -1.0
    assert delayed_choice.chose_exact("rough\nexact\n000:3", 3) == -1.0


@pytest.mark.thorough
def test_runs_differ_in_the_critic_its_lambda_and_the_length_alone():
    flags = {}
    for case in itertools.product(delayed_choice.CRITICS, delayed_choice.ALGORITHMS, [64, 128]):
        critic, lambda_critic, length = case
        config = printed(*delayed_choice.training(*case, 0, "ACTOR")[1:])
        model = config["model"]["init_args"]
        assert model["advantage"].pop("lambda_critic") == float(lambda_critic)
        assert model["sampling"].pop("max_response_length") == length + 64
        assert config["data"]["generated"].pop("max_steps") == length // 8
        assert config["data"]["generated"].pop("min_steps") == length // 8
        assert (model.pop("critic") == "ACTOR") == (critic == "full")
        assert not config["value_pretraining"]["enabled"]
        flags[case] = config
    first, *others = flags.values()
    assert all(other == first for other in others)


def test_a_run_is_counted_to_the_rollout_that_knows_the_choice(tmp_path):
    def write(*accuracies):
        lines = ["step,rollout/accuracy,rollout/response_length"]
        lines += [f"{i},{accuracy},{60 + i}" for i, accuracy in enumerate(accuracies)]
        (tmp_path / "metrics.csv").write_text("\n".join(lines))
        return delayed_choice.outcome(tmp_path)

    assert write(0.4, 0.5, 0.9) == {"rollouts": 3, "exact": "0.6", "response_length": "62"}
    assert write(0.4, 0.3) == {"rollouts": "", "exact": "0.35", "response_length": "61"}


def test_the_figure_is_drawn_of_runs_that_got_there_and_that_did_not(tmp_path):
    rows = [
        dict(zip(delayed_choice.COLUMNS, values, strict=True))
        for values in [
            ("window", "0.95", "64", "0", "", "0.4", "70", "9"),
            ("window", "1", "64", "0", "20", "0.8", "70", "9"),
            ("window", "1", "128", "0", "25", "0.8", "70", "9"),
        ]
    ]
    delayed_choice.draw(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
