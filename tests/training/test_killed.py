"""Runs that are killed and resumed end like an uninterrupted run, bit for bit."""

import os
from pathlib import Path

import pytest
from killed_runs import CONFIGS, _train_in_peace, end_of, kill_and_resume

from carnet.data.synthetic import write_dataset

pytestmark = pytest.mark.skipif(os.name == "nt", reason="SIGKILL is not known on Windows")


@pytest.mark.parametrize("num_kills", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_and_resumed_is_identical(num_kills: int, tmp_path: Path) -> None:
    kills = kill_and_resume(tmp_path, num_kills, seed=num_kills)
    assert [kill for kill in kills if not kill.identical] == []


def test_the_comparison_can_fail(tmp_path: Path) -> None:
    write_dataset(tmp_path / "pictures", train_per_class=6, valid_per_class=2, size=64)
    for name, config in CONFIGS.items():
        _train_in_peace(tmp_path / name, tmp_path / "pictures", config)
    one, other = (end_of(tmp_path / name) for name in CONFIGS)
    assert one["weights"] != other["weights"]
    assert one["metrics"] != other["metrics"]
