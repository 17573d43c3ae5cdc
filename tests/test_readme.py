"""What the README says to type works as printed."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from carnet.cli.main import run
from carnet.training import resolve as recipe

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def here(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(photos, tmp_path / "photos")
    shutil.copy(photos / "valid" / "red" / "9.jpg", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line and not line.startswith("import")]) <= 5
    # All that is printed there, for a shorter time.
    exec(code.replace("epochs=30", "epochs=3"), {})
    accuracy, prediction = capsys.readouterr().out.splitlines()
    assert 0 <= float(accuracy) <= 1
    assert re.fullmatch(r"(not confident: )?(\w+ \d+\.\d%(, )?){3}", prediction)
    assert (here / "runs" / "mine" / "report.html").exists()


def test_commands(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # For two dozen pictures it would take 200 epochs.
    monkeypatch.setattr(recipe, "MOST_EPOCHS", 5)
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("carnet ")]
    assert {line.split()[1] for line in lines} == {"train", "evaluate", "export", "predict", "summary"}
    for line in lines:
        assert run(shlex.split(line)[1:]) == 0, line


def test_make_targets_exist_and_ci_runs_the_test_command() -> None:
    root = Path(__file__).parents[1]
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\S+)", "\n".join(blocks("sh")), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    assert "make test" in (root / ".ci" / "run").read_text(encoding="utf-8")


def test_links_lead_somewhere() -> None:
    root = Path(__file__).parents[1]
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (root / target).exists(), target
