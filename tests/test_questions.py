"""Two people's questions are answered by the README and the documents alone, whose commands run as printed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import reproduce_published
from pictures import save_picture

import carnet
from carnet.cli.main import run

ROOT = Path(__file__).parents[1]
SHORT = ["--epochs", "2", "--model", "carnet_n", "--image-size", "32", "--output", "runs/photos-carnet_s"]


def section(document: str, heading: str) -> str:
    """Return the part of a document below a heading, up to the next one of its level."""
    text = (ROOT / document).read_text(encoding="utf-8")
    level = heading.split(maxsplit=1)[0]
    found = re.search(rf"^{re.escape(heading)}$(.*?)(?=^#{{1,{len(level)}}} |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, f"{document} has no section {heading!r}"
    return found[1]


def commands(text: str, program: str) -> list[list[str]]:
    """Return the arguments of each command of a program in the shell blocks of a text."""
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    parsed = (shlex.split(line, comments=True) for line in lines if line)
    return [words[1:] for words in parsed if words and words[0].rpartition("/")[2] == program]


def test_i_have_300_photos_in_four_folders_and_a_raspberry_pi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for k, name in enumerate(("cat", "dog", "hen", "pig")):
        for i in range(10):
            save_picture(tmp_path / "photos" / name / f"{i}.jpg", (60 * k, 200 - 50 * k, 120), seed=10 * k + i)
    shutil.copy(tmp_path / "photos" / "cat" / "1.jpg", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    few = section("docs/data.md", "## A few hundred photos")
    assert "photos/cat/1.jpg" in few
    assert "deploy.md#raspberry-pi" in few
    train = next(words for words in commands((ROOT / "README.md").read_text("utf-8"), "carnet") if words[0] == "train")
    assert run([*train, *SHORT]) == 0

    board = section("docs/deploy.md", "## Raspberry Pi, or any small computer")
    steps = commands(board, "carnet")
    assert [step[0] for step in steps] == ["export", "verify", "predict", "benchmark"]
    for step in steps:
        assert run(step) == 0, step
        if step[0] == "export":
            # The step between the two machines.
            assert re.search(r"^scp .*/model\.onnx ", board, re.MULTILINE)
            shutil.copy("runs/photos-carnet_s/model.onnx", "model.onnx")
    assert "no PyTorch" in board
    assert "64-bit" in board
    assert re.search(r"cat|dog|hen|pig", capsys.readouterr().out)
    assert carnet.load("model.onnx").classes == ("cat", "dog", "hen", "pig")


def test_i_want_to_reproduce_the_table_of_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    readme = section("README.md", "## The published CARNet")
    assert "(docs/reproduction.md)" in readme
    assert "--preset published" in readme
    (summary,) = re.findall(r"`carnet (summary carnet18)`", readme)
    assert run([*summary.split(), "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)
    claims = section("docs/reproduction.md", "## The claims")
    assert f"{counted['params']:,}" in claims

    at_full_size = section("docs/reproduction.md", "## At full size, on one GPU")
    scripts = commands(at_full_size, "python")
    assert len(scripts) >= 5
    for script, *arguments in scripts:
        assert (ROOT / script).is_file()
        reproduce_published.parse(arguments, carnet.published())
    differences = section("docs/recipe.md", "## The published recipe")
    config = carnet.published()
    assert f"| epochs | {config.epochs} |" in differences
    assert f"| batch | {config.batch_size}," in differences
