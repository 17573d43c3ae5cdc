"""The commands and the Python example of the README work as printed."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from pictures import save_picture
from serving import served

from carnet.cli.main import run
from carnet.web.runtime import FILES

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def here(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(photos, tmp_path / "photos")
    shutil.copy(photos / "valid" / "red" / "9.jpg", tmp_path / "photo.jpg")
    for number in range(3):
        save_picture(tmp_path / "more-photos" / f"{number}.jpg", (200, 80, 60), seed=900 + number)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line and not line.startswith("import")]) <= 5
    # The same with fewer epochs.
    exec(code.replace("epochs=30", "epochs=3"), {})
    prediction, accuracy = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"(not confident: )?(\w+ \d+\.\d%(, )?){3}", prediction)
    assert 0 <= float(accuracy) <= 1
    assert (here / "runs" / "photos-carnet_s" / "report.html").exists()
    assert (here / "where.png").exists()
    assert (here / "model.onnx").exists()


def test_commands(here: Path) -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("carnet ")]
    assert {line.split()[1] for line in lines} == {"train", "evaluate", "export", "predict", "serve"}
    for name in FILES:
        # Stand-ins for what npm would bring.
        (here / name).write_bytes(b"")
    for line in lines:
        command, *words = shlex.split(line, comments=True)[1:]
        if command == "serve":
            # No browser is opened here.
            with served(*(word for word in words if word != "--open")) as (_, service, _):
                assert service.ask("/", host="localhost").status == 200
            continue
        # By itself, training would take 200 epochs for so few images.
        more = ["--epochs", "5"] if command == "train" and "--freeze" not in line else []
        more += ["--ort-dist", str(here)] if "--web" in words else []
        assert run([command, *words, *more]) == 0, line


def test_make_targets_exist_and_ci_runs_the_test_command() -> None:
    root = Path(__file__).parents[1]
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\S+)", "\n".join(blocks("sh")), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    assert "make test" in (root / ".ci" / "run").read_text(encoding="utf-8")


def test_it_is_short() -> None:
    assert len(README.split()) <= 700


def test_links_lead_somewhere() -> None:
    root = Path(__file__).parents[1]
    for target in re.findall(r"\]\((?!https:)([^)#]+)\)", README):
        assert (root / target).exists(), target
