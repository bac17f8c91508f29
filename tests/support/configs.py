"""Helpers of tests."""

import contextlib
import io

import pytest
import yaml

from tests.support.tiny_runs import vcppo

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where libyaml is


def printed(*arguments):
    """Return the config that a command would run with."""
    out = io.StringIO()
    with pytest.raises(SystemExit) as end, contextlib.redirect_stdout(out):
        vcppo("fit", *arguments, "--print_config")
    assert not end.value.code
    return yaml.load(out.getvalue(), Loader=LOADER)
