"""Shells complete commands, flags, values and paths."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from children import finished

from carnet.cli.completion import completion
from carnet.cli.main import COMMANDS

BASH = r"""
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_tyro_carnet
echo "${#COMPREPLY[@]}"
printf '%s\n' "${COMPREPLY[@]}"
"""
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "carnet"
    path.write_text(completion("bash"), encoding="utf-8")
    return path


def completed(script: Path, *words: str) -> list[str]:
    number, *found = finished(["bash", "-c", BASH, "bash", script, *words], check=True).stdout.split()
    # An empty match would keep bash from completing a path.
    assert int(number) == len(found)
    return found


@needs_bash
def test_commands_flags_and_values(script: Path) -> None:
    assert set(COMMANDS) <= set(completed(script, "carnet", ""))
    assert completed(script, "carnet", "tr") == ["train"]
    assert completed(script, "carnet", "train", "--bud") == ["--budget"]
    assert completed(script, "carnet", "export", "runs/a", "--format", "") == ["onnx", "openvino", "ncnn"]


@needs_bash
def test_anything_else_is_a_path(script: Path) -> None:
    assert completed(script, "carnet", "train", "pho") == []
    assert completed(script, "carnet", "train", "") == []
    assert completed(script, "carnet", "train", "photos", "--output", "my") == []
    shown = finished(["bash", "-c", 'source "$1"; complete -p carnet', "bash", script], check=True).stdout
    assert "-o default" in shown


@pytest.mark.parametrize(("shell", "paths"), [("zsh", "|| _files"), ("fish", "complete --command 'carnet'")])
def test_other_shells(shell: str, paths: str) -> None:
    script = completion(shell)  # type: ignore[arg-type]
    assert "carnet" in script
    assert "--budget" in script
    assert paths in script
    if program := shutil.which(shell):
        assert finished([program, "-n", "-c", script]).returncode == 0


def test_the_command(call: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = call("completion", "bash")
    assert (code, out.strip()) == (0, completion("bash").strip())
    assert json.loads(call("completion", "bash", "--json")[1])["shell"] == "bash"
    code, _, err = call("completion", "cmd")
    assert code == 2
    assert "fish" in err
