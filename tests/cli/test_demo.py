"""`carnet demo`, made small: fewer and smaller images, and one epoch."""

import functools
import json
from pathlib import Path

import pytest

from carnet.cli.demo import RECIPE, Command
from carnet.cli.main import run
from carnet.config import TrainingConfig
from carnet.data.synthetic import PICTURE_SIZE, write_dataset

SMALL = TrainingConfig(model="carnet_n", image_size=48, epochs=1)
FEW = functools.partial(write_dataset, train_per_class=4, valid_per_class=2)


def test_it_trains_for_two_minutes_at_most_and_never_compiles() -> None:
    assert (RECIPE.budget, RECIPE.compile, RECIPE.image_size) == ("2m", False, PICTURE_SIZE)


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Command(output=tmp_path / "demo").run(SMALL, FEW) == 0
    out = capsys.readouterr().out
    assert "10 classes, 40 train, 20 valid images" in out
    assert "prediction: " in out
    assert "carnet train YOUR_PHOTOS" in out
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"pictures", "run"}
    assert (tmp_path / "demo" / "run" / "report.html").exists()


def test_dirty_demo_accounts_for_what_was_planted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Command(output=tmp_path / "demo", dirty=True, json=True).run(SMALL, FEW) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["num_skipped_unreadable"] == 3
    assert document["valid"]["num_leaked"] == 1
    assert len(document["predicted"]["predictions"]) == 3
    # Three unreadable files, four duplicates, and one image under two classes.
    assert all(count in captured.err for count in ("3 x ", "4 x ", "1 image under two classes"))


def test_nothing_is_ever_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious.txt").write_text("mine")
    assert run(["demo", "--output", str(tmp_path)]) == 2
    assert "--output" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "precious.txt"]
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert Command().run(SMALL, FEW) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"run", "carnet-demo", "carnet-demo-2"}
