"""Which arithmetic is faster is measured, and a run keeps to what was chosen."""

import json
import os
import platform
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from children import finished
from environment import HELD_TO_AVX2
from runs import StopAt, same_weights

from carnet import TrainingConfig, train
from carnet.errors import RunError, StoppedError
from carnet.models.weights import on_threads
from carnet.text import Silent
from carnet.training import measurements, rehearsal
from carnet.training.measurements import (
    PRIOR_SECONDS,
    MatrixRates,
    compiling,
    expected_seconds,
    kept_matrix_rates,
    known_speedup,
    measure_matrix_rates,
    recall,
    remember,
)

SMALL = TrainingConfig(model="carnet_n", image_size=32, epochs=2, batch_size=8, compile=False)


@pytest.mark.parametrize(("bf16", "faster"), [(0.85, "fp32"), (82.0, "fp32"), (90.0, "fp32"), (91.0, "bf16")])
def test_bf16_wins_by_a_margin(bf16: float, faster: str) -> None:
    assert MatrixRates(fp32=82.0, bf16=bf16).faster_precision == faster


def test_rates_are_those_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"fp32": [1.0, 9.0, 2.0], "bf16": [40.0, 30.0, 20.0]}
    monkeypatch.setattr(
        "carnet.training.measurements.take_turns", lambda calls, rounds: {name: times[name] for name in calls}
    )
    rates = measure_matrix_rates(side=100)
    assert rates == MatrixRates(fp32=pytest.approx(1.0), bf16=pytest.approx(2e6 / 30e-3 / 1e9))
    assert str(rates) == "products of matrices run at 1 GFLOP/s in fp32 and 0.0667 in bf16"
    assert rates.to_json() == {"fp32": 1.0, "bf16": 0.0667}


def test_the_measurement_itself_gives_rates() -> None:
    rates = measure_matrix_rates(rounds=1)
    assert rates.fp32 > 0
    assert rates.bf16 > 0


def test_what_was_measured_first_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARNET_CACHE", str(tmp_path))
    measured = [MatrixRates(fp32=80.0, bf16=89.0), MatrixRates(fp32=80.0, bf16=87.0)]
    monkeypatch.setattr("carnet.training.measurements.measure_matrix_rates", lambda _: measured.pop(0))
    with on_threads(1):
        assert [kept_matrix_rates("cpu").faster_precision for _ in range(2)] == ["bf16", "bf16"]
    with on_threads(2):
        assert kept_matrix_rates("cpu").faster_precision == "fp32"


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="these variables are for x86-64 processors")
def test_without_bf16_instructions_muon_takes_fp32(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    script = f"""
import json
from carnet import TrainingConfig, train
from carnet.training.measurements import measure_matrix_rates
print(json.dumps(measure_matrix_rates().to_json()))
train({str(photos)!r}, TrainingConfig(model="carnet_n", image_size=32, epochs=1, batch_size=8), output={str(run)!r})
"""
    done = finished(
        [sys.executable, "-c", script], env=os.environ | HELD_TO_AVX2 | {"OMP_NUM_THREADS": "1"}, check=True
    )
    rates = json.loads(done.stdout)
    assert rates["bf16"] < rates["fp32"] / 2, "the variables have no effect"
    record = json.loads((run / "config.json").read_text())
    assert record["processor_features"] == "AVX2"
    assert record["resolved"]["matrix_gflops"]["bf16"] < record["resolved"]["matrix_gflops"]["fp32"] / 2
    assert record["resolved"]["muon_precision"] == "fp32"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_keeps_to_its_precision(
    precision: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = MatrixRates(fp32=1.0, bf16={"fp32": 0.1, "bf16": 10.0}[precision])
    monkeypatch.setattr(rehearsal, "kept_matrix_rates", lambda _: chosen)
    train(photos, SMALL, output=tmp_path / "whole", progress=Silent())
    with pytest.raises(StoppedError):
        train(photos, SMALL, output=tmp_path / "run", progress=StopAt("epoch 2/2", 1))
    # On a machine where the other one is faster.
    monkeypatch.setattr(rehearsal, "kept_matrix_rates", lambda _: MatrixRates(fp32=chosen.bf16, bf16=chosen.fp32))
    asked = replace(SMALL, muon_precision={"fp32": "bf16", "bf16": "fp32"}[precision])
    with pytest.raises(RunError, match=r"--muon-precision"):
        train(config=asked, resume=tmp_path / "run", progress=Silent())
    train(resume=tmp_path / "run", progress=Silent())
    assert same_weights(tmp_path / "whole", tmp_path / "run")
    train(photos, asked, output=tmp_path / "other", progress=Silent())
    assert not same_weights(tmp_path / "whole", tmp_path / "other")


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CARNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_it_took_before_is_expected_again(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert expected_seconds(recall(), "carnet_s") == PRIOR_SECONDS
    remember(compiling("carnet_s"), {"seconds": 21.0})
    remember(compiling("carnet_m"), {"seconds": 93.0})
    assert expected_seconds(recall(), "carnet_s") == 21.0
    assert expected_seconds(recall(), "carnet_n") == 93.0
    assert known_speedup(recall(), "carnet_s") is None
    remember(compiling("carnet_s"), {"seconds": 40.0, "speedup": 1.25})
    assert expected_seconds(recall(), "carnet_s") == 40.0
    assert known_speedup(recall(), "carnet_s") == 1.25
    monkeypatch.setattr(measurements, "processor_features", lambda: "another instruction set")
    assert expected_seconds(recall(), "carnet_s") == PRIOR_SECONDS


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1, 2]",
        '{"a": 3}',
        '{"%s": [1]}',
        '{"%s": {"compiling with summed batch norms n": 5}}',
        '{"%s": {"compiling with summed batch norms n": {}}}',
        '{"%s": {"compiling with summed batch norms n": {"seconds": "long"}}}',
        '{"%s": {"compiling with summed batch norms n": {"seconds": -1}}}',
        '{"%s": {"compiling with summed batch norms n": {"seconds": 1e999}}}',
    ],
)
def test_a_file_that_says_nothing_of_use(content: str, empty_cache: Path) -> None:
    remember(compiling("n"), {"seconds": 1.0})
    (file,) = empty_cache.iterdir()
    file.write_text(content.replace("%s", measurements._machine()))
    assert expected_seconds(recall(), "n") == PRIOR_SECONDS
    remember(compiling("n"), {"seconds": 7.0})
    assert expected_seconds(recall(), "n") == 7.0


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CARNET_CACHE", str(tmp_path / "file" / "cache"))
    remember(compiling("n"), {"seconds": 7.0})
    assert expected_seconds(recall(), "n") == PRIOR_SECONDS
