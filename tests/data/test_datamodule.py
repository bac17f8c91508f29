"""The data module: splits and prompts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from lightning_vcppo.data.datamodule import INSTRUCTION, AIMEDataModule, render_prompt
from lightning_vcppo.data.sources import load_problems
from lightning_vcppo.data.splits import fingerprint
from tests.support.data import CHAT, byte_tokenizer, indices, write_problems


def data_module(stage="fit", **arguments):
    settings = {"tokenizer": byte_tokenizer(), "train_size": 20, "val_size": 5, **arguments}
    data = AIMEDataModule(**{"prompts_per_rollout": 4, "val_batch_size": 2, **settings})
    data.setup(stage)
    return data


def held_out(data):
    """Return the batches of the only validation set."""
    (loader,) = data.val_dataloader()
    return list(loader)


# Prompts


def test_plain_prompts_open_the_thinking():
    tokenizer = byte_tokenizer()
    assert render_prompt("1 + 1?", tokenizer) == "1 + 1?\n<think>\n"
    assert render_prompt("1 + 1?", byte_tokenizer(CHAT), chat_template="plain") == (
        "1 + 1?\n<think>\n"
    )
    with pytest.raises(ValueError, match="chat_template: the tokenizer has none"):
        render_prompt("1 + 1?", tokenizer, chat_template="chat")


@pytest.mark.parametrize(
    ("arguments", "prompt"),
    [
        ({}, "1 + 1?"),
        ({"instruction": ""}, "1 + 1?"),
        ({"instruction": INSTRUCTION}, f"1 + 1?\n{INSTRUCTION}"),
        ({"system_prompt": "Be brief."}, "Be brief.\n1 + 1?"),
        (
            {"system_prompt": "Be brief.", "context": [("system", "Be long."), ("user", "Hi")]},
            "Be long.\nHi\n1 + 1?",
        ),
    ],
)
@pytest.mark.parametrize("template", [None, CHAT])
def test_plain_prompts_have_the_instruction_and_the_system_prompt_that_are_given(
    arguments, prompt, template
):
    rendered = render_prompt("1 + 1?", byte_tokenizer(template), chat_template="plain", **arguments)
    assert rendered == f"{prompt}\n<think>\n"


def test_a_plain_prompt_that_asks_for_a_box_is_not_told_again():
    asked = "1 + 1? Put your answer in \\boxed{}."
    assert render_prompt(asked, byte_tokenizer(), instruction=INSTRUCTION) == f"{asked}\n<think>\n"


def test_chat_prompts_ask_for_a_box_once():
    tokenizer = byte_tokenizer(CHAT)
    assert render_prompt("1 + 1?", tokenizer) == f"<user>1 + 1?\n{INSTRUCTION}<assistant>"
    asked = r"1 + 1? Answer in \boxed{}."
    assert render_prompt(asked, tokenizer) == f"<user>{asked}<assistant>"
    assert render_prompt("1?", tokenizer, instruction="", system_prompt="Be brief.") == (
        "<system>Be brief.<user>1?<assistant>"
    )


def test_a_template_that_refuses_is_a_users_mistake():
    tokenizer = byte_tokenizer("{{ raise_exception('no system role') }}")
    with pytest.raises(ValueError, match="refuses the prompt: no system role"):
        render_prompt("1?", tokenizer, system_prompt="Be brief.")


# Problems


def test_generated_problems_are_split_without_overlap():
    data = data_module()
    train = {p.problem for batch in data.train_dataloader() for p in batch.problems}
    val = {p.problem for batch in held_out(data) for p in batch.problems}
    assert len(train) == 20 and len(val) == 5 and not train & val
    again = data_module()
    assert indices(again.train_dataloader()) == indices(data.train_dataloader())
    other = data_module(seed=1)
    assert {p.problem for b in held_out(other) for p in b.problems} != val


def test_prompt_ids_are_the_rendered_prompt():
    tokenizer = byte_tokenizer()
    batch = held_out(data_module(tokenizer=tokenizer))[0]
    for problem, ids in zip(batch.problems, batch.prompt_ids, strict=True):
        assert tokenizer.decode(ids) == f"{problem.problem}\n<think>\n"


def test_special_tokens_come_from_the_tokenizer_or_from_its_template():
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    for template in (None, "<bos>" + CHAT):
        tokenizer.chat_template = template
        batch = held_out(data_module(tokenizer=tokenizer))[0]
        assert [ids.count(tokenizer.bos_token_id) for ids in batch.prompt_ids] == [1, 1]


def test_generating_sources_differ_between_training_and_validation():
    pytest.importorskip("reasoning_gym")
    task = "reasoning_gym:gcd"
    data = data_module(path=task, val_path=task, train_size=40, val_size=40)
    assert len(data.train_dataloader()) == 10


def test_near_duplicates_of_validation_problems_are_not_trained_on(tmp_path):
    train = write_problems(
        tmp_path / "train.jsonl", ["Find $x^2$ for x = 3.", "find  X = 3", "Find $x^2$ for x = 4."]
    )
    val = write_problems(tmp_path / "val.jsonl", [r"find \(x^2\), for X=3"])
    data = data_module(path=train, val_path=val, prompts_per_rollout=2)
    (batch,) = data.train_dataloader()
    assert {p.source for p in batch.problems} == {"train.jsonl:2", "train.jsonl:3"}
    with pytest.raises(ValueError, match="all 1 training problems are near-duplicates"):
        data_module(path=val, val_path=val, prompts_per_rollout=1)


@given(st.text())
def test_fingerprints_forget_case_and_spaces_only_once(text):
    assert fingerprint(fingerprint(text)) == fingerprint(text)
    assert fingerprint(f" {text}\n.") == fingerprint(text)


def test_instructions_and_figures_do_not_hide_a_duplicate():
    question = "Find 3x if x = 4."
    copies = [
        rf"{question} Please reason step by step, and put your final answer within \boxed{{}}.",
        f"{question}\n[asy]\ndraw((0,0)--(1,5));\n[/asy]",
        f'Solve it step by step.\n\n{question}\n\nRemember to write "Answer:" in front.',
    ]
    assert {fingerprint(copy) for copy in copies} == {fingerprint(question)}
    assert fingerprint("The final answer to 1 + 2?") != fingerprint("The final answer to 1 + 3?")
    assert fingerprint("step by step") == "stepbystep"


def test_other_digits_or_operators_make_another_problem():
    problems = ["12 + 3 * 4", "12 * 3 * 4", "12 + 3 * 5", "1 - 2 + 3 * 4"]
    assert len(set(map(fingerprint, problems))) == 4


def test_every_problem_of_two_copies_of_aime24_is_recognised(shared_data):
    copies = [
        {fingerprint(p.problem) for p in load_problems(shared_data / name)}
        for name in ("aime24_qwen25math.jsonl", "aime24_qwq.jsonl")
    ]
    assert len(copies[0]) == 30 and copies[0] == copies[1]


def test_past_aime_does_not_hold_the_evaluation_sets(shared_data):
    train = {
        fingerprint(p.problem)
        for p in load_problems(shared_data / "aime_1983_2023_deepscaler.json")
    }
    for name in ("aime24_qwq.jsonl", "aime25_matharena.csv"):
        assert not train & {fingerprint(p.problem) for p in load_problems(shared_data / name)}


def test_several_files_are_joined_and_predicted_in_order(tmp_path):
    paths = [write_problems(tmp_path / f"{n}.jsonl", [f"{n}{i}" for i in range(3)]) for n in "ab"]
    data = data_module("predict", path=paths)
    batches = list(data.predict_dataloader())
    assert [p.problem for b in batches for p in b.problems] == ["a0", "a1", "a2", "b0", "b1", "b2"]
    assert [b.indices for b in batches] == [[0, 1], [2, 3], [4, 5]]


def test_problems_are_set_aside_from_a_file(tmp_path):
    path = write_problems(tmp_path / "a.jsonl", [f"Find {i}" for i in range(12)])
    data = data_module(path=path, val_size=3, prompts_per_rollout=9)
    train, (test,) = next(iter(data.train_dataloader())), data.test_dataloader()
    sources = [p.source for batch in [train, *test] for p in batch.problems]
    assert len(set(sources)) == 12
    with pytest.raises(ValueError, match="val_size: 12 of 12 problems leaves none to train on"):
        data_module(path=path, val_size=12)


@pytest.mark.parametrize(
    ("problems", "held", "rollout"), [(2, 1, 1), (40, 4, 36), (100, 10, 64), (700, 64, 64)]
)
def test_sizes_that_are_not_set_fit_a_small_file(tmp_path, caplog, problems, held, rollout):
    path = write_problems(tmp_path / "a.jsonl", [f"Find {i}" for i in range(problems)])
    with caplog.at_level("INFO"):
        data = data_module(path=path, val_size=None, prompts_per_rollout=None)
    (batch, *_) = data.train_dataloader()
    assert (len(batch), len(data.train_dataloader())) == (rollout, (problems - held) // rollout)
    assert sum(map(len, held_out(data))) == held
    assert ("--data.val_size" in caplog.text) == (held < 64)
    assert ("--data.prompts_per_rollout" in caplog.text) == (rollout < 64)


def test_an_evaluation_of_a_small_file_uses_all_of_it_and_says_so(tmp_path, caplog):
    path = write_problems(tmp_path / "a.jsonl", [f"Find {i}" for i in range(40)])
    with caplog.at_level("INFO"):
        assert sum(map(len, held_out(data_module("validate", path=path, val_size=None)))) == 40
    assert "`fit` holds 4 out, which --data.val_size=4 evaluates" in caplog.text
    held = validation_problems("fit", path=path, val_size=None)
    assert held == validation_problems("validate", path=path, val_size=4)


def validation_problems(stage, **arguments):
    batches = held_out(data_module(stage, **arguments))
    return [problem for batch in batches for problem in batch.problems]


@pytest.mark.parametrize("path", [None, "reasoning_gym:gcd"])
def test_generated_validation_problems_depend_on_neither_stage_nor_train_size(path):
    expected = validation_problems("fit", path=path, val_size=3)
    assert validation_problems("validate", path=path, val_size=3) == expected
    assert validation_problems("fit", path=path, val_size=3, train_size=30) == expected
    assert validation_problems("fit", path=path, val_size=3, seed=1) != expected
    assert len(expected) == 3


def test_validate_takes_what_fit_sets_aside_or_a_whole_small_file(tmp_path):
    path = write_problems(tmp_path / "a.jsonl", [f"Find {i}" for i in range(12)])
    aside = validation_problems("fit", path=path, val_size=3)
    assert validation_problems("validate", path=path, val_size=3) == aside
    whole = validation_problems("validate", path=path, val_size=12)
    assert [p.source for p in whole] == [f"a.jsonl:{i}" for i in range(1, 13)]


def test_the_seed_is_the_runs(monkeypatch):
    assert AIMEDataModule().seed == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert (AIMEDataModule().seed, AIMEDataModule(seed=3).seed) == (7, 3)


def test_validation_alone_reads_no_training_problems(tmp_path):
    val = write_problems(tmp_path / "val.jsonl", ["a", "b"])
    data = data_module("validate", path="no/such/file.jsonl", val_path=val)
    assert indices(held_out(data)) == [[0, 1]]


def test_no_validation():
    assert data_module(val_size=0).val_dataloader() == []


def test_evaluation_sets_stand_beside_the_held_out_problems(tmp_path):
    paths = {
        n: write_problems(tmp_path / f"{n}.jsonl", [f"{n} {i}" for i in range(3)]) for n in "ab"
    }
    for stage, loaders in (("fit", "val"), ("test", "test")):
        data = data_module(stage, evaluation_sets={**paths, "sums": None})
        sets = [list(loader) for loader in getattr(data, f"{loaders}_dataloader")()]
        assert [s[0].evaluation_set for s in sets] == ["held_out", "a", "b", "sums"]
        assert [sum(map(len, s)) for s in sets] == [5, 3, 3, 5]
        assert [p.problem for batch in sets[1] for p in batch.problems] == ["a 0", "a 1", "a 2"]
        assert indices(sets[1]) == [[0, 1], [2]]
    alone = data_module("validate", val_size=0, evaluation_sets=paths).val_dataloader()
    assert [next(iter(loader)).evaluation_set for loader in alone] == ["a", "b"]


def test_problems_of_evaluation_sets_are_not_trained_on(tmp_path):
    train = write_problems(tmp_path / "train.jsonl", [f"Find {i}" for i in range(9)])
    a = write_problems(tmp_path / "a.jsonl", ["find 3!", "find 4!"])
    data = data_module(path=train, val_size=2, prompts_per_rollout=1, evaluation_sets={"a": a})
    seen = {p.problem for batch in data.train_dataloader() for p in batch.problems}
    assert len(seen) in (5, 6, 7) and not seen & {"Find 3", "Find 4"}


@pytest.mark.parametrize("name", ["aime/24", "", "held_out"])
def test_the_name_of_an_evaluation_set_is_part_of_a_metrics_name(name):
    with pytest.raises(ValueError, match="evaluation_sets: expected names of letters"):
        AIMEDataModule(evaluation_sets={name: "a.jsonl"})


# Mistakes


def test_long_prompts_are_refused_or_dropped(tmp_path):
    path = write_problems(tmp_path / "a.jsonl", ["short", "x" * 50, "y" * 60, "brief"])
    with pytest.raises(ValueError) as error:
        data_module("predict", path=path, max_prompt_length=40)
    assert str(error.value) == (
        "a.jsonl:2: the prompt has 59 tokens, more than max_prompt_length=40 (as 2 of 4 prompts); "
        "raise --data.max_prompt_length or skip them with --data.on_long_prompt=drop"
    )
    with pytest.warns(UserWarning, match="skipped 2 long prompts; a.jsonl:2"):
        data = data_module("predict", path=path, max_prompt_length=40, on_long_prompt="drop")
    assert indices(data.predict_dataloader()) == [[0, 3]]
    with pytest.raises(ValueError, match="as 4 of 4 prompts"):
        data_module("predict", path=path, max_prompt_length=5, on_long_prompt="drop")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_size": 0}, "train_size: expected >= 1, got 0"),
        ({"val_size": -1}, "val_size: expected >= 0, got -1"),
        (
            {"prompts_per_rollout": 21},
            "prompts_per_rollout: 21 is more than the 20 training problems",
        ),
        ({"tokenizer": None}, "tokenizer: the model has none; set --data.tokenizer"),
        ({"tokenizer": "no/such/directory"}, "no/such/directory"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        data_module(**arguments)
    assert "\n" not in str(error.value)


def test_copies_among_the_training_problems_are_counted(tmp_path, caplog):
    texts = [f"What is {i % 4} + 1?" for i in range(12)]
    path, val = tmp_path / "train.jsonl", tmp_path / "val.jsonl"
    write_problems(path, texts)
    write_problems(val, ["What is 3 + 1?"])
    data = AIMEDataModule(
        str(path), str(val), prompts_per_rollout=2, tokenizer=byte_tokenizer(), val_size=1
    )
    with caplog.at_level("INFO"):
        data.setup("fit")
    said = "9 training problems, 6 of them duplicates (3 near-duplicates"
    assert said in caplog.text
