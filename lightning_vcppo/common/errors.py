"""Turn errors into one line: what went wrong, where, and what to do.

Other libraries explain a mistake in paragraphs. Here they become the line with which `vcppo` ends.
"""

from __future__ import annotations

import argparse
import errno
import linecache
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from lightning_vcppo.common.ranks import own_rank
from lightning_vcppo.common.suggestions import did_you_mean, nearest_flag
from lightning_vcppo.common.terminal import printable


def require(condition: bool, message: str) -> None:
    """Raise ValueError with `message` unless the condition holds."""
    if not condition:
        raise ValueError(message)


LARGEST_SEED = 2**32 - 1
"""Larger seeds are refused by Lightning and NumPy."""


def require_seed(name: str, seed: int) -> None:
    """Refuse a seed that a run would not take.

    Args:
        name: Name of the setting or flag.
        seed: The seed.

    Raises:
        ValueError: If the seed is out of bounds.
    """
    require(0 <= seed <= LARGEST_SEED, f"{name}: expected a seed in 0..{LARGEST_SEED}, got {seed}")


USER_ERROR = 2
"""Exit code of a user's mistake."""
NO_SPACE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
MISTAKES = (ValueError, OSError, ImportError)
"""Errors that a user's mistake raises, here and in other libraries."""
WRONG_FORM = (LookupError, AttributeError, TypeError, ArithmeticError)
"""Errors of a library's code that finds something else in a user's file than it expects."""
MISTAKES_BY_NAME = {"MisconfigurationException", "UsageError", "AuthenticationError", "CommError"}
"""The same for libraries that take seconds to import: Lightning, Weights & Biases."""
REFUSING = (
    *("lightning.", "lightning_fabric", "lightning_utilities", "pytorch_lightning", "wandb."),
    *("transformers.", "tokenizers.", "huggingface_hub.", "datasets.", "peft.", "accelerate."),
)
"""Libraries that raise a RuntimeError for a user's mistake."""
KNOWN = {
    r"^No supported gpu backend": (
        "--trainer.accelerator=gpu: no GPU found; omit the flag, and see `vcppo doctor`"
    ),
    r"^Automatic gradient clipping": (
        "--trainer.gradient_clip_val: actor and critic have their own norms; set "
        "--model.actor_optimizer.max_grad_norm and --model.critic_optimizer.max_grad_norm"
    ),
    r"^Automatic gradient accumulation": (
        "--trainer.accumulate_grad_batches: gradients are always accumulated; set "
        "--model.update.ppo_mini_batch_size and --model.update.ppo_max_token_len_per_gpu"
    ),
    r"^Early stopping conditioned on metric `(.*?)` which is not|"
    r"^`ModelCheckpoint\(monitor='(.*?)'\)` could not find": (
        r"monitor=\1\2: nothing has logged a metric of this name; metrics.csv has those of the run"
    ),
    r"^You restored a checkpoint with current_epoch=(\d+).*max_epochs=(\d+)": (
        r"--trainer.max_epochs=\2: the checkpoint was saved after \1 epochs; give a larger number"
    ),
    r"^(-?\d+) is not in bounds, numpy accepts from 0 to (\d+)": (
        r"--seed_everything: expected a seed in 0..\2, got \1"
    ),
    r"^Interpolation key '(.*?)' not found.*full_key: \w+\.([\w.]+)": (
        r"--\2: the reference ${\1} does not exist"
    ),
}
"""Patterns of other libraries' messages, and the messages that replace them."""
MAX_LENGTH = 600
"""Largest number of characters of a line; longer messages are mostly lists of all choices."""

_FRAME = re.compile(
    r"Does not validate against|Subtypes: |Errors:$|Expected a <class 'NoneType'>|Given value|"
    r"Not a valid subclass of|Subclass types expect one of|a class path|a dict with"
)
_TYPES = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "text"}
_TYPES |= {"dict": "a mapping {name: value}", "list": "a list [a, b]", "Sequence": "a list [a, b]"}


class UserError(ValueError):
    """A user's mistake whose message is already one line for the user."""


class EngineLostError(UserError):
    """No sampling server answers any more; the message says which, and what was tried."""


def debugging() -> bool:
    """Return whether tracebacks are wanted: `--debug`, or VCPPO_DEBUG in the environment."""
    return bool(os.environ.get("VCPPO_DEBUG"))


def fail(message: str, error: BaseException | None = None) -> NoReturn:
    """End the program with one line and exit code 2; when debugging, print a traceback first.

    Most mistakes occur on all ranks, some on only one, and no rank knows of the others'. So every
    rank prints its line, and all but the first add their number.
    """
    if debugging() and error is not None:
        traceback.print_exception(error)
    rank = own_rank()
    who = f"[rank {rank}] " if rank else ""
    print(f"vcppo: {who}error: {printable(one_line(message))}", file=sys.stderr)
    raise SystemExit(USER_ERROR)


@contextmanager
def in_one_line() -> Iterator[None]:
    """End the program as `fail` does if the body raises a user's mistake."""
    try:
        yield
    except Exception as error:  # `describe` returns None for a bug, which is raised again
        line = describe(error)
        if line is None:
            raise
        fail(line, error)


def one_line(message: str) -> str:
    """Return the content of a message, without the lines that jsonargparse adds."""
    lines = (line.strip().removeprefix("- ") for line in message.splitlines())
    text = " ".join(line for line in lines if line and not _FRAME.match(line))
    text = text.replace(' in "<unicode string>",', " at")
    text = re.sub(r'Parser key "([\w.]+)"(?: element \d+)?:', r"--\1:", text)
    text = re.sub(r"<class '([\w.]+)'>", r"\1", text)
    return text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]} ..."


def describe(error: Exception, directory: str = "the run's directory") -> str | None:
    """Return the message of an error for the user; None if it is a bug.

    Args:
        error: Any error.
        directory: Directory of the run, for disk errors that name no file.
    """
    if isinstance(error, UserError):
        return str(error)
    for link in _causes(error):
        system = re.search(r"\(os error (\d+)\)", str(link))  # the form of Rust, from safetensors
        number = link.errno if isinstance(link, OSError) else int(system[1]) if system else None
        if number in NO_SPACE:
            place = getattr(link, "filename", None) or directory
            return (
                f"{place}: {os.strerror(number).lower()}; make room or choose another "
                "--trainer.default_root_dir, and resume with --ckpt_path=last"
            )
    text = str(error).strip()
    if port := re.search(r"port: (\d+).*EADDRINUSE", text, re.DOTALL):
        return f"MASTER_PORT={port[1]}: another program uses this port; choose a free one"
    if text.startswith("Error(s) in loading state_dict"):
        return _describe_other_model(text)
    if isinstance(error, OSError) and error.errno and error.filename is not None:
        return _describe_file(error)
    on_purpose = isinstance(error, RuntimeError) and _describe_runtime_error(error)
    if not (on_purpose or isinstance(error, MISTAKES) or type(error).__name__ in MISTAKES_BY_NAME):
        return None
    for pattern, ours in KNOWN.items():
        if found := re.search(pattern, text, re.DOTALL):
            return found.expand(ours)
    return on_purpose or text or type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__


def _describe_runtime_error(error: RuntimeError) -> str | None:
    """Return the message of a RuntimeError if memory is full or a library raised it on purpose.

    Some libraries raise it for a user's mistake. An error of torch's operators is a bug of the
    calling code, and keeps its traceback.
    """
    if type(error).__name__ == "OutOfMemoryError":
        return (
            "the GPU's memory is full; lower --model.update.ppo_max_token_len_per_gpu or "
            f"--model.engine.max_num_seqs (see `vcppo plan`): {str(error).partition('. ')[0]}"
        )
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or type(error) is not RuntimeError:
        return None
    module = str(trace.tb_frame.f_globals.get("__name__", ""))
    line = linecache.getline(trace.tb_frame.f_code.co_filename, trace.tb_lineno)
    on_purpose = line.lstrip().startswith("raise ")
    return str(error).strip() if on_purpose and module.startswith(REFUSING) else None


def _describe_other_model(text: str) -> str:
    """Return that a checkpoint does not fit the networks, with the first difference."""
    first, *others = [line.strip() for line in text.splitlines()[1:] if line.strip()]
    names = re.findall(r'"([\w.]+)"', first)
    if names:
        verb = "lacks" if first.startswith("Missing") else "also has"
        difference, more = f"it {verb} {names[0]}", len(names) - 1 + len(others)
    else:
        name = first.removeprefix("size mismatch for ").partition(":")[0]
        shapes = [f"({shape})" for shape in re.findall(r"Size\(\[([\d, ]*)\]\)", first)]
        difference, more = f"{name} is {' there and '.join(shapes)} here", len(others)
    rest = f" (and {more} more differences)" if more else ""
    return (
        f"--ckpt_path: the checkpoint is of another model: {difference}{rest}; use the --model.* "
        "flags of its run, which are in its config.yaml"
    )


def _describe_file(error: OSError) -> str:
    """Return the file's name and its error."""
    advice = {
        errno.EACCES: "; change its permissions or choose another place",
        errno.EPERM: "; change its permissions or choose another place",
        errno.EROFS: "; choose another place",
        errno.ELOOP: "; its symbolic links form a cycle",
    }
    reason = os.strerror(error.errno or 0)
    name = str(error.filename)
    name = name if len(name) <= 120 else f"{name[:120]}..."
    return f"{name}: {reason[0].lower()}{reason[1:]}{advice.get(error.errno or 0, '')}"


def explain(
    message: str,
    flags: Iterable[str],
    class_names: Callable[[str], Iterable[str]] = lambda flag: (),
) -> str:
    """Rewrite jsonargparse's message about an argument as one line.

    Args:
        message: Message of jsonargparse.
        flags: All flags of the parser.
        class_names: Returns the names of the classes that a flag accepts.
    """
    text, known = one_line(message), list(flags)
    if unknown := re.match(r"unrecognized arguments: (\S+)", text):
        flag = unknown[1].partition("=")[0]
        if not flag.startswith("-"):
            return (
                f"unexpected argument {flag!r}; expected --flag=value, and --flag='[a, b]' for "
                "several values"
            )
        return _no_such_option(flag, known)
    if unknown := re.match(r"(?:Subcommand '\w+' .*o|O)ption '([\w.]+)'", text):
        return _no_such_option(f"--{unknown[1]}", known)
    if unknown := re.match(r"Group '([\w.]+)' does not accept option '([\w.]+)'", text):
        return _no_such_option(f"--{unknown[1]}.{unknown[2]}", known)
    if of_class := re.match(r"(--[\w.]+): Problem with given class_path '([\w.]+)': (.*)", text):
        return _of_a_class(*of_class.groups())
    if named := re.match(r"(--[\w.]+): .*Expected a dot import path string: (\S+)", text):
        flag, name = named.groups()
        if flag == "--trainer.strategy" and name.islower():
            return (
                f"{flag}={name}: a strategy with arguments must be given by its class, "
                f"such as {flag}=DDPStrategy or {flag}=FSDP2Strategy"
            )
        return f"{flag}: no such class {name}{did_you_mean(name, class_names(flag))}"
    lost = r"(--[\w.]+): (?:Unable to load config|File does not exist:) ['\"](.*?)['\"]"
    if missing := re.match(lost, text):
        return f"{missing[1]}: no such file {missing[2]}"
    if bare := re.match(r"argument (--[\w.]+): expected one argument", text):
        return f"{bare[1]}: expected a value, {bare[1]}=VALUE"
    if other := re.match(r"argument (--[\w.]+): invalid (\w+) value: '(.*)'", text):
        return f"{other[1]}: expected {_TYPES[other[2]]}, got {other[3]}"
    if typed := re.match(r"(--[\w.]+): (Expected a .*)", text, re.DOTALL):
        return _of_a_type(typed[1], typed[2], message)
    return text


class OneLineArguments(argparse.ArgumentParser):
    """A parser that prints one line for a mistake, without the usage."""

    def error(self, message: str) -> NoReturn:
        """End the program."""
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        fail(explain(message, flags))

    def add_switch(self, flag: str, description: str) -> None:
        """Add a flag that is off by default: `--flag` alone means `--flag=true`."""
        self.add_argument(flag, type=_truth, nargs="?", const=True, default=False, help=description)


def _truth(text: str) -> bool:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")


def _no_such_option(flag: str, known: Iterable[str]) -> str:
    close = nearest_flag(flag, known)
    return f"{flag}: no such option" + (f"; did you mean {close}?" if close else "")


def _of_a_class(flag: str, path: str, reason: str) -> str:
    """Return the message about an argument of a class that another argument names."""
    reason = reason.partition(" Problem with given class_path")[0]  # the next type tried
    if required := re.match(r"the following arguments are required: ([\w.]+)", reason):
        return f"{flag}.{required[1]}: required by {path.rpartition('.')[2]}"
    if not reason.startswith("--"):
        return f"{flag}: {path.rpartition('.')[2]}: {reason}"
    return re.sub(r"(?<!\S)--(?=\w)", f"{flag}.", reason)


def _of_a_type(flag: str, expected: str, message: str) -> str:
    """Return a message with the values that an argument accepts, and the one it got."""
    given = re.search(r"(?:Got value|Given value): (.*)", message)
    value = given[1].strip() if given else ""
    choices: list[str] = []
    kinds: list[str] = []
    for literal, name in re.findall(
        r"Expected a (?:typing\.Literal\[(.*?)\]|([\w.]*\w))", expected
    ):
        choices += re.findall(r"'(.*?)'", literal)
        if name:
            kinds.append(_TYPES.get(name.rpartition(".")[2], f"a {name}"))
    choices = [*dict.fromkeys(choices)]  # a list of them, or one of them
    options = [*dict.fromkeys(kinds), *([f"one of {', '.join(choices)}"] if choices else [])]
    return f"{flag}: expected {' or '.join(options)}, got {value}{did_you_mean(value, choices)}"
