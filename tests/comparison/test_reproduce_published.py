"""The script for the reproduction at full size: a small trial on a processor, the requested runs, and how it stops."""

from __future__ import annotations

import json
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reproduce_published

from carnet import published
from carnet.data.cache import cache_root
from carnet.errors import StoppedError

SMALL = replace(published(), image_size=48, batch_size=2, epochs=1)
# The published pair takes a minute on a slow processor, and is tested elsewhere.
PAIR = ("carnet18", "carnet_n")


class Written:
    """Keeps what would become a dated result."""

    name = ""
    numbers: dict[str, Any]

    def __call__(self, name: str, command: str, numbers: dict[str, Any]) -> Path:
        self.name, self.command, self.numbers = name, command, numbers
        return Path("results") / name


def untrainable(*_: Any, **__: Any) -> tuple[list[Path], list[str]]:
    pytest.fail("it trains")


def prepared_files() -> set[tuple[Path, int]]:
    return {(path, path.stat().st_mtime_ns) for path in cache_root().glob("decoded/*/images.u8")}


@pytest.mark.usefixtures("quick_processes")
def test_two_batches_for_each_network_from_prepared_pixels(photos: Path, tmp_path: Path) -> None:
    flags = [str(photos), "--batches", "2", "--seeds", "1", "--device", "cpu", "--output", str(tmp_path)]
    before, written = prepared_files(), Written()
    assert reproduce_published.main([*flags, "--prepare"], PAIR, recipe=SMALL, train=untrainable) == 0
    # Four photos to train on and four to validate, of 48 px in three colours, and their thumbnails.
    assert {path.stat().st_size for path, _ in prepared_files() - before} == {8 * 48 * 48 * 3, 8 * 64 * 64}
    prepared = prepared_files()
    assert reproduce_published.main(flags, PAIR, recipe=SMALL, write=written) == 0
    assert prepared_files() == prepared
    for name in PAIR:
        run = tmp_path / f"{name}-seed-0"
        assert len((run / "data.csv").read_text().splitlines()) == 1 + 8
        assert json.loads((run / "result.json").read_text())["epochs"] == 1
    # The recipe is the one that was passed, but not the data.
    assert written.name == f"rehearsal-{tmp_path.name}"
    assert [row["label"] for row in written.numbers["networks"]] == list(PAIR)
    head, *lines = [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("|")]
    assert head == "|  | carnet18, published | carnet18 | carnet_n |"
    assert len(lines) == 1 + len(reproduce_published.MEASURES)
    assert (tmp_path / "figure.png").exists()


def test_it_requests_the_published_runs(photos: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def train(data: str, models: tuple[str, ...], **others: Any) -> tuple[list[Path], list[str]]:
        asked.update(data=data, models=models, **others)
        return [], ["resnet18-seed-0 could not be trained"]

    flags = [str(photos), "--device", "cpu", "--output", str(tmp_path / "answer")]
    assert reproduce_published.main(flags, train=train, write=(written := Written())) == 1
    assert (asked["models"], asked["seeds"], asked["folder"]) == (("carnet18", "resnet18"), 5, tmp_path / "answer")
    config = asked["config"]
    assert (config.image_size, config.epochs, config.batch_size, config.precision) == (244, 50, 16, "fp32")
    assert config.cache == "disk"
    # No run is finished, and the result says so.
    assert (written.name, written.numbers["runs"], written.numbers["networks"]) == ("reproduction", [], [])
    assert "resnet18-seed-0 could not be trained" in written.numbers["state"]


@pytest.mark.parametrize(("minutes", "code"), [("1e-9", 0), ("9", 128 + signal.SIGINT)])
def test_a_part_of_the_runs_ends_with_what_is_finished(
    minutes: str, code: int, photos: Path, trained_run: Path, tmp_path: Path
) -> None:
    def copy(name: str, **recipe: Any) -> Path:
        run = Path(shutil.copytree(trained_run, tmp_path / name))
        config = json.loads((run / "config.json").read_text())
        config["resolved"] |= recipe
        config["requested"] |= recipe
        (run / "config.json").write_text(json.dumps(config))
        return run

    def train(*_: Any, **__: Any) -> tuple[list[Path], list[str]]:
        copy("carnet_n-seed-0", seed=0)
        copy("carnet18-seed-0", model="carnet18")
        (copy("carnet_n-seed-1", seed=1, epochs=50) / "result.json").unlink()
        begun = copy("carnet18-seed-1", model="carnet18", seed=1)
        (begun / "result.json").unlink()
        (begun / "metrics.csv").unlink()
        copy("another-network", model="carnet_s")
        raise StoppedError("stopped", signal.SIGINT)

    written = Written()
    flags = [str(photos), "--minutes", minutes, "--device", "cpu", "--output", str(tmp_path)]
    assert reproduce_published.main(flags, PAIR, train=train, write=written) == code
    runs = {run["run"]: run for run in written.numbers["runs"]}
    assert list(runs) == ["carnet18-seed-0", "carnet18-seed-1", "carnet_n-seed-0", "carnet_n-seed-1"]
    assert (len(runs["carnet_n-seed-0"]["epochs"]), runs["carnet_n-seed-0"]["result"]["epochs"]) == (2, 2)
    assert (len(runs["carnet_n-seed-1"]["epochs"]), runs["carnet_n-seed-1"]["result"]) == (2, None)
    assert (runs["carnet18-seed-1"]["epochs"], runs["carnet18-seed-1"]["result"]) == ([], None)
    # An unfinished run is not averaged with finished ones, and its name says so.
    labels = ["carnet18", "carnet_n", "carnet_n seed 1, 2 of 50 epochs"]
    assert [row["label"] for row in written.numbers["networks"]] == labels
    table = (tmp_path / "table.md").read_text()
    state, _, _ = table.partition("\n")
    assert re.search(r"^2 of 10 .*carnet18-seed-1 \(0 of 2 .*carnet_n-seed-1 \(2 of 50 ", state)
    assert f"|  | carnet18, published | {' | '.join(labels)} |" in table
    # The same without photos and without weights, which may be too large to copy.
    for file in [*tmp_path.glob("figure.*"), *tmp_path.glob("*/*.ckpt"), *tmp_path.glob("*/model.*")]:
        file.unlink()
    assert (
        reproduce_published.main(["--report", "--output", str(tmp_path)], PAIR, train=untrainable, write=written) == 0
    )
    assert (tmp_path / "figure.png").exists()
    assert [row["label"] for row in written.numbers["networks"]] == labels


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--device", "cuda"], "--device"),
        (["--minutes", "0"], "--minutes"),
        (["--batches", "-1"], "--batches"),
        (["--image-size", "10"], "10"),
        (["--report", "--output", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line(
    flags: list[str], named: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [str(photos), "--device", "cpu", "--output", str(tmp_path), *flags]
    assert reproduce_published.main(flags, write=Written()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


def test_without_photos_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce_published.main([], train=untrainable) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--report" in line


def test_without_a_valid_folder_it_says_so(flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [str(flat), "--device", "cpu", "--output", str(tmp_path)]
    assert reproduce_published.main(flags, train=untrainable) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(flat) in line
    assert "valid" in line
