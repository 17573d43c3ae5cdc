"""`carnet demo`, made small: fewer and smaller pictures, one epoch."""

import functools
import json
from pathlib import Path

import pytest

from carnet.cli import demo
from carnet.cli.main import run
from carnet.config import TrainingConfig
from carnet.data.synthetic import PICTURE_SIZE

RECIPE = demo.demo_config()
"""As users have it."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    def config(*, seed: int = 0, skip_unreadable: bool = False) -> TrainingConfig:
        return TrainingConfig(model="carnet_n", image_size=48, epochs=1, seed=seed, skip_unreadable=skip_unreadable)

    monkeypatch.setattr(demo, "demo_config", config)
    few = functools.partial(demo.write_dataset, train_per_class=4, valid_per_class=2)
    monkeypatch.setattr(demo, "write_dataset", few)


def test_it_trains_for_two_minutes_at_most_and_never_compiles() -> None:
    assert (RECIPE.budget, RECIPE.compile, RECIPE.image_size) == ("2m", False, PICTURE_SIZE)


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--output", str(tmp_path / "demo")]) == 0
    out = capsys.readouterr().out
    assert "Found 10 classes, 40 train, 20 valid images." in out
    assert "looks like:" in out
    assert "carnet train YOUR_PHOTOS" in out
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"pictures", "run"}
    assert (tmp_path / "demo" / "run" / "report.html").exists()


def test_dirty_demo_accounts_for_what_was_planted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--dirty", "--json", "--output", str(tmp_path / "demo")]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["num_skipped_unreadable"] == 3
    assert document["valid"]["num_leaked"] == 1
    assert len(document["predicted"]["predictions"]) == 3
    assert "3 x left out because it cannot be read" in captured.err
    assert "4 x the same file again" in captured.err
    assert "1 image under two classes" in captured.err


def test_nothing_is_ever_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious.txt").write_text("mine")
    assert run(["demo", "--output", str(tmp_path)]) == 2
    assert "choose another --output" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "precious.txt"]
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert run(["demo"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"run", "carnet-demo", "carnet-demo-2"}
