"""Prompts: instructions of the reward's style, ends of tokens, templates by name, and dates."""

import re
from datetime import date

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tokenizers import processors

from lightning_vcppo.data import prompts as module
from lightning_vcppo.data.datamodule import AIMEDataModule
from lightning_vcppo.data.problem import Problem
from lightning_vcppo.data.prompts import (
    INSTRUCTION,
    Clock,
    chat_template_text,
    render_prompt,
    tokenise_prompts,
    unread_form,
)
from lightning_vcppo.rewards.functions import Grader
from lightning_vcppo.rewards.verifier import INSTRUCTIONS, is_correct
from tests.support.data import CHAT, byte_tokenizer, write_problems

DATED = "{{ strftime_now('%d %b %Y') }}: " + CHAT


# The form of the answer


@pytest.mark.parametrize("style", INSTRUCTIONS)
def test_the_instruction_is_that_of_the_style(style):
    tokenizer = byte_tokenizer(CHAT)
    assert INSTRUCTIONS[style] in render_prompt("1 + 1?", tokenizer, style=style)


@pytest.mark.parametrize(
    ("style", "response"),
    [("boxed", r"\boxed{2}"), ("answer_line", "Answer: 2"), ("last_number", "It is 2")],
)
def test_a_response_that_does_as_it_is_told_is_right(style, response):
    assert is_correct(f"So\n{response}", 2, style=style)


@pytest.mark.parametrize(
    ("text", "style", "is_added"),
    [
        (r"1? Use \boxed{}.", "boxed", False),
        (r"1? Use \boxed{}.", "answer_line", True),
        ("1? Put it on a line after 'Answer:'.", "answer_line", False),
        ("1? Put it on a line after 'Answer:'.", "boxed", True),
        ("1? Put it on a line after 'Answer:'.", "lenient", False),
    ],
)
def test_an_instruction_is_added_unless_the_problem_has_one_that_is_read(text, style, is_added):
    tokenizer = byte_tokenizer(CHAT)
    for context in ((), (("system", "Be brief."),)):
        rendered = render_prompt(text, tokenizer, style=style, context=context)
        assert (INSTRUCTIONS[style] in rendered) == is_added
    asked_before = render_prompt("1?", tokenizer, style=style, context=(("system", text),))
    assert (INSTRUCTIONS[style] in asked_before) == is_added


@pytest.mark.parametrize(
    ("text", "unread"),
    [
        ("1 + 1?", {}),
        (r"1? Use \boxed{}.", {"answer_line": r"\boxed{}"}),
        ("1? Put it on a line after 'Answer:'.", {"boxed": "Answer:"}),
        ('1? Output the answer after "####".', {"boxed": "####", "answer_line": "####"}),
    ],
)
def test_forms_that_a_style_does_not_read(text, unread):
    problem = Problem(text, 2)
    found = {style: form for style in INSTRUCTIONS if (form := unread_form(problem, style))}
    assert found == unread
    told_before = Problem("1?", 2, context=(("system", text),))
    assert {s: f for s in INSTRUCTIONS if (f := unread_form(told_before, s))} == unread


class Rewarded(pl.LightningModule):
    """Has what the data module asks a module for."""

    def __init__(self, reward="boxed", template=CHAT):
        super().__init__()
        self.grader, self.tokenizer = Grader(reward), byte_tokenizer(template)
        self.layer = torch.nn.Linear(1, 1)

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch

    def training_step(self, batch, batch_idx):
        return self.layer.weight.sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def run(directory, path, what="fit", ckpt_path=None, lightning_module=None, **arguments):
    data = AIMEDataModule(path=path, val_size=1, prompts_per_rollout=2, **arguments)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2 if ckpt_path else 1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(directory, filename="last")],
    )
    getattr(trainer, what)(lightning_module or Rewarded(), data, ckpt_path=ckpt_path)
    return data


def texts(data):
    batches = [data._train, *data._val]
    return [byte_tokenizer().decode(ids) for batch in batches for ids in batch.prompt_ids]


def test_the_reward_of_the_module_decides(tmp_path):
    asked = [f"{i}? Put it on its own line after 'Answer:'." for i in range(5)]
    path = write_problems(tmp_path / "a.jsonl", asked)
    with pytest.warns(UserWarning, match=r"4 of 4 problems ask for Answer: \(a.jsonl:\d\), which "):
        data = run(tmp_path, path)
    assert all(INSTRUCTION in text for text in texts(data))
    data = run(tmp_path, path, lightning_module=Rewarded("answer_line"))
    assert not any("reason step by step" in text for text in texts(data))

    plain = write_problems(tmp_path / "b.jsonl", [f"{i}?" for i in range(5)])
    data = run(tmp_path, plain, lightning_module=Rewarded("answer_line"))
    assert all(INSTRUCTIONS["answer_line"] in text for text in texts(data))
    data = run(tmp_path, plain, lightning_module=Rewarded(lambda response, answer: 1.0))
    assert all(INSTRUCTION in text for text in texts(data))
    data = run(tmp_path, plain, instruction="Be quick.")
    assert all("?\nBe quick.<" in text for text in texts(data))


# The chat


def test_the_whole_chat_is_the_prompt():
    context = (("system", "Base 7."), ("user", "1+1?"), ("assistant", "2"))
    tokenizer = byte_tokenizer(CHAT)
    for own in (None, "Be brief."):  # the row's system message goes first
        rendered = render_prompt(
            "And doubled?", tokenizer, context=context, instruction="", system_prompt=own
        )
        assert rendered == "<system>Base 7.<user>1+1?<assistant>2<user>And doubled?<assistant>"
    assert render_prompt("And doubled?", byte_tokenizer(), context=context) == (
        "Base 7.\n1+1?\n2\nAnd doubled?\n<think>\n"
    )


EACH = "{%% for m in messages %%}%s{%% endfor %%}"
TURNS = [("system", "In base 7. /no_think"), ("user", "1 < 2?"), ("assistant", "<think>a</think>b")]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (EACH % "{{ m.content }}", None),
        (EACH % "{{ m.content | trim }}", None),
        (EACH % "{{ m.content.replace('/no_think', '').split('</think>')[-1] }}", None),
        (
            EACH % "{{ m.content if m.role != 'system' else '' }}",
            "the system message 'In base 7.",
        ),
        ("{{ messages[0].content + messages[-1].content }}", "the user message '1 < 2?'"),
        (EACH % "{{ m.content[:8] }}", "the system message"),
        (EACH % "{{ m.content | lower }}", "the system message"),
        (EACH % "{{ m.content | e }}", "the user message '1 < 2?'"),
        ("{{ messages[0].content + 3 }}", "refuses the prompt: can only concatenate str"),
        ("{{ 1 / 0 }}", "refuses the prompt: division by zero"),
        (
            "{% for tool in tools %}{% endfor %}",
            "refuses the prompt: 'NoneType' object is not iter",
        ),
    ],
)
def test_a_template_drops_no_text_of_a_message(template, message):
    def render():
        return render_prompt("And 3?", byte_tokenizer(template), context=TURNS, instruction="")

    if message is None:
        assert "In base 7." in render()
    else:
        with pytest.raises(ValueError, match=re.escape(message)) as refusal:
            render()
        assert "\n" not in str(refusal.value)


def test_templates_are_chosen_by_name():
    tokenizer = byte_tokenizer({"rag": "R", "tool_use": "T{{ messages[0].content }}"})
    assert chat_template_text(tokenizer, "rag") == "R"
    assert render_prompt("1?", tokenizer, chat_template="tool_use", instruction="") == "T1?"
    assert chat_template_text(tokenizer, "plain") is None
    for name in ("auto", "chat"):
        with pytest.raises(ValueError, match="none of which is called default; name one of rag, t"):
            chat_template_text(tokenizer, name)
    with pytest.raises(ValueError, match=r"expected auto, chat, plain or .* \(rag, tool_use\), go"):
        chat_template_text(tokenizer, "tools")
    tokenizer.chat_template = {"default": "D", "rag": "R"}
    assert [chat_template_text(tokenizer, n) for n in ("auto", "chat", "rag")] == ["D", "D", "R"]
    with pytest.raises(ValueError, match=r"\(it has none\), got 'rag'"):
        chat_template_text(byte_tokenizer(), "rag")


# Ends


@pytest.mark.parametrize("is_chat", [False, True])
@pytest.mark.parametrize(
    ("single", "front"),
    [("$A <eos>", 0), ("<pad> $A <eos>", 1), ("<pad> <pad> $A <eos> <sep>", 2), ("$A", 0)],
)
def test_special_tokens_behind_a_prompt_go(single, front, is_chat):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"sep_token": "<sep>"})
    names = [name for name in ("<pad>", "<eos>", "<sep>") if name in single]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(n, tokenizer.convert_tokens_to_ids(n)) for n in names]
    )
    texts = ["1 + 1?\n<think>\n", "a\n"]
    front = 0 if is_chat else front
    for text, ids in zip(texts, tokenise_prompts(texts, tokenizer, is_chat=is_chat), strict=True):
        assert ids[:front] == [tokenizer.pad_token_id] * front
        assert tokenizer.decode(ids[front:]) == text


def test_a_special_token_that_the_text_ends_with_stays():
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"sep_token": "<sep>"})
    (ids,) = tokenise_prompts(["a<sep>"], tokenizer, is_chat=True)
    assert ids[-1] == tokenizer.sep_token_id
    assert tokenise_prompts([], tokenizer, is_chat=False) == []


# The date


def test_templates_see_a_clock_that_stands_still():
    clock = Clock(date(2026, 1, 31))
    tokenizer = byte_tokenizer(DATED)
    assert render_prompt("1?", tokenizer, clock=clock).startswith("31 Jan 2026: <user>")
    assert clock.was_read
    llama = (
        "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
        "{%- set date_string = strftime_now('%A, %-d %B %Y, 100%%') %}{%- endif %}{%- endif %}\n"
        "Today Date: {{ date_string }}\n{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    rendered = render_prompt("1?", byte_tokenizer(llama), clock=Clock(date(2026, 2, 1)))
    assert rendered.startswith("Today Date: Sunday, 1 February 2026, 100%\n1?")
    kept = byte_tokenizer("\n \n{{ strftime_now('%Y') }}{{ messages[0].content }}")
    clock = Clock(date(2026, 2, 1))
    assert render_prompt("1?", kept, clock=clock, instruction="") == "\n \n20261?"
    clock = Clock(date(2026, 1, 31))
    render_prompt("1?", byte_tokenizer(CHAT), clock=clock)
    assert not clock.was_read


def test_a_resumed_run_has_the_date_of_its_start(tmp_path, monkeypatch):
    path = write_problems(tmp_path / "a.jsonl", [f"{i}?" for i in range(5)])

    def on(day, **arguments):
        class Day(date):
            @classmethod
            def today(cls):
                return cls(2026, 1, day)

        for place in (module, AIMEDataModule):
            name = "lightning_vcppo.data.datamodule" if place is AIMEDataModule else place.__name__
            monkeypatch.setattr(f"{name}.date", Day)
        data = run(tmp_path, path, lightning_module=Rewarded(template=DATED), **arguments)
        return {text[:12] for text in texts(data)}

    assert on(30) == {"30 Jan 2026:"}
    checkpoint = str(tmp_path / "last.ckpt")
    saved = torch.load(checkpoint, weights_only=True)["AIMEDataModule"]
    assert saved["prompt_date"] == "2026-01-30"
    assert on(31, ckpt_path=checkpoint, what="validate") == {"30 Jan 2026:"}
    assert on(31, ckpt_path=checkpoint, prompt_date="2026-01-01") == {"01 Jan 2026:"}
    assert on(31) == {"31 Jan 2026:"}


def test_a_template_without_a_date_saves_none(tmp_path):
    path = write_problems(tmp_path / "a.jsonl", [f"{i}?" for i in range(5)])
    assert "prompt_date" not in run(tmp_path, path).state_dict()


def test_a_date_that_is_none_is_refused():
    with pytest.raises(ValueError, match="prompt_date: expected YYYY-MM-DD, got 'tomorrow'"):
        AIMEDataModule(prompt_date="tomorrow")
