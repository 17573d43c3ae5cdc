"""The script that compares two commits' weights sees what differs, and cleans up after itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import equal_weights
import pytest
import torch
from children import finished
from equal_weights import COMMON, CONFIGURATIONS, Side, compare_runs, draw_photos, flags_for, flags_in
from safetensors.torch import save_file
from worktree import ROOT, worktree

STATE = {
    "epoch": 2,
    "step": 0,
    "num_steps": 20,
    "planned_progress": 0.0,
    "seconds": 3.5,
    "history": [{"valid_loss": 0.5}],
}
METRICS = {"epoch": "1", "seconds": "3.5", "train_loss": "1.25"}
# A stand-in for the package, which "learns" its seed and what `learned.txt` beside it says.
STAND_IN = """
import csv, json, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file

arguments = sys.argv[1:]
if "--help" in arguments:
    print("Examples:  carnet train photos --budget 10m", *{flags}, "--seed INT", sep="\\n│ ")
    sys.exit()
run = Path(arguments[arguments.index("--output") + 1])
run.mkdir()
seed = int(arguments[arguments.index("--seed") + 1]) if "--seed" in arguments else 0
learned = Path(__file__).with_name("learned.txt").read_text()
save_file({{"weight": np.full(3, seed + float(learned), np.float32)}}, run / "model.safetensors")
(run / "metrics.csv").write_text("epoch,seconds\\n1,2.5\\n")
sys.exit(learned == "0")
"""


def write_run(
    run: Path,
    tensors: dict[str, torch.Tensor] | None = None,
    state: dict[str, Any] | None = None,
    metrics: dict[str, str] | None = None,
) -> Path:
    run.mkdir()
    tensors = {"network.weight": torch.arange(4.0), "average.weight": torch.zeros(2)} | (tensors or {})
    metadata = {"state": json.dumps(STATE | (state or {})), "optimizer": json.dumps([{"lr": 0.1}])}
    save_file(tensors, run / "last.ckpt", metadata)
    save_file({"weight": tensors["network.weight"]}, run / "model.safetensors")
    row = METRICS | (metrics or {})
    (run / "metrics.csv").write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
    return run


def test_runs_that_differ_in_seconds_alone_are_equal(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one")
    other = write_run(tmp_path / "other", state={"seconds": 9.0}, metrics={"seconds": "9.0"})
    assert list(compare_runs(one, other)) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tensors": {"network.weight": torch.tensor([0.0, 1.0, 2.0, 3.0 + 2**-21])}}, ["last.ckpt", "model.s"]),
        ({"tensors": {"average.weight": torch.tensor([0.0, -0.0])}}, ["average.weight"]),
        ({"tensors": {"average.weight": torch.zeros(2, dtype=torch.bfloat16)}}, ["average.weight"]),
        ({"tensors": {"optimizer.0.step": torch.zeros(())}}, ["optimizer.0.step"]),
        ({"state": {"step": 1}}, ["state step"]),
        ({"state": {"history": [{"valid_loss": 0.25}]}}, ["history.0.valid_loss"]),
        ({"metrics": {"train_loss": "1.5"}}, ["train_loss"]),
        ({"metrics": {"valid_loss": "1.5"}}, ["valid_loss"]),
    ],
)
def test_each_difference_is_one_line(changes: dict[str, Any], named: list[str], tmp_path: Path) -> None:
    found = list(compare_runs(write_run(tmp_path / "one"), write_run(tmp_path / "other", **changes)))
    assert len(found) == len(named)
    assert all(name in line for name, line in zip(named, found))


def test_nothing_to_compare_is_a_difference(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other")
    for run in (one, other):
        (run / "last.ckpt").unlink()
        (run / "model.safetensors").unlink()
    assert len(list(compare_runs(one, other))) == 1


def test_a_renamed_counter_does_not_go_unseen(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other")
    state = {("place" if key == "planned_progress" else key): value for key, value in STATE.items()}
    tensors = {"network.weight": torch.arange(4.0), "average.weight": torch.zeros(2)}
    save_file(tensors, other / "last.ckpt", {"state": json.dumps(state), "optimizer": json.dumps([{"lr": 0.1}])})
    (line,) = compare_runs(one, other)
    assert "planned_progress" in line


def test_renamed_tensors_are_compared(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other")
    tensors = {"network.weight": torch.arange(4.0), "ema.weight": torch.ones(2)}
    save_file(tensors, other / "last.ckpt", {"state": json.dumps(STATE), "optimizer": json.dumps([{"lr": 0.1}])})
    (line,) = compare_runs(one, other)
    assert "average.weight" in line


def test_flags_by_their_names_on_each_side() -> None:
    help_ = "Examples:\n  carnet train photos --budget 10m\n│ -h, --help   show --json │\n│ --epochs INT  with --lr\n"
    assert flags_in(help_) == {"--help", "--epochs"}
    for name in ("--start-share", "--initial-size-ratio"):
        side = Side("side", ROOT, ROOT, frozenset({"--epochs", name}))
        assert flags_for({"--start-share": "0.5", "--epochs": "2"}, side) == [name, "0.5", "--epochs", "2"]
    with pytest.raises(SystemExit, match="--lr"):
        flags_for({"--lr": "1"}, side)


def test_the_package_knows_every_flag() -> None:
    from dataclasses import fields

    from carnet import TrainingConfig

    known = frozenset(f"--{field.name.replace('_', '-')}" for field in fields(TrainingConfig))
    for settings in CONFIGURATIONS.values():
        assert flags_for(COMMON | settings, Side("present", ROOT, ROOT, known))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One commit with a stand-in for the package."""
    if shutil.which("git") is None:
        pytest.skip("git is not on this machine")
    root = tmp_path / "repository"
    (root / "carnet").mkdir(parents=True)
    (root / "carnet" / "__init__.py").touch()
    (root / "carnet" / "__main__.py").write_text(STAND_IN.format(flags=[f"{flag} VALUE" for flag in COMMON]))
    (root / "carnet" / "learned.txt").write_text("1")
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "--quiet"], ["add", "."], [*author, "commit", "--quiet", "--message", "one"]):
        finished(["git", "-C", root, *command], check=True)
    return root


def worktrees(repository: Path) -> int:
    return len(finished(["git", "-C", repository, "worktree", "list"], check=True).stdout.splitlines())


def test_a_commit_against_the_present_files(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--commit", "HEAD", "--only", "plain"]
    assert equal_weights.main(arguments, repository) == 0
    assert "1 of 1" in capsys.readouterr().out
    # Another seed for one side, and other code.
    assert equal_weights.main([*arguments, "--present-flags=--seed 1"], repository) == 1
    assert "plain: model.safetensors: weight: 3 of 3" in capsys.readouterr().out
    (repository / "carnet" / "learned.txt").write_text("2")
    assert equal_weights.main(arguments, repository) == 1
    # A run that fails.
    (repository / "carnet" / "learned.txt").write_text("0")
    with pytest.raises(SystemExit, match="failed in"):
        equal_weights.main(arguments, repository)
    assert worktrees(repository) == 1


def test_no_work_tree_is_left_after_an_error(repository: Path) -> None:
    def fail() -> None:
        with worktree("HEAD", repository) as tree:
            assert (tree / "carnet" / "__main__.py").exists()
            assert worktrees(repository) == 2
            raise RuntimeError(str(tree))

    with pytest.raises(RuntimeError) as caught:
        fail()
    assert not Path(str(caught.value)).exists()
    assert worktrees(repository) == 1
    with pytest.raises(SystemExit, match="nowhere"):
        equal_weights.main(["--commit", "nowhere"], repository)


def test_photos_are_drawn_alike_each_time(tmp_path: Path) -> None:
    one, other = (draw_photos(tmp_path / name) for name in ("one", "other"))
    files = sorted(path.relative_to(one) for path in one.rglob("*.*"))
    assert len(files) == 4 * (equal_weights.NUM_TRAIN + equal_weights.NUM_VALID)
    assert all((one / file).read_bytes() == (other / file).read_bytes() for file in files)


@pytest.mark.slow
def test_the_present_files_against_themselves(tmp_path: Path) -> None:
    data = draw_photos(tmp_path / "photos")
    sides = [equal_weights.see(name, ROOT, tmp_path / name) for name in ("one", "other")]
    runs = [equal_weights.train(side, "accumulated", data, tmp_path) for side in sides]
    assert list(compare_runs(*runs)) == []
    seeded = equal_weights.see("seeded", ROOT, tmp_path / "seeded", ("--seed", "1"))
    assert list(compare_runs(runs[0], equal_weights.train(seeded, "accumulated", data, tmp_path)))
