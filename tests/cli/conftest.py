"""How the tests of the commands call them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from carnet.cli.main import run

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command line inside this process, and return its exit code, standard output and standard error."""

    def called(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return called
