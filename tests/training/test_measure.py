"""Measurements are kept for later runs, and a run keeps to what was chosen by them."""

import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from children import finished
from environment import HELD_TO_AVX2
from fake_measure import FakeMeasure
from runs import StopAt, resolved, same_weights

from carnet import ModelSpec, TrainingConfig
from carnet.errors import RunError, StoppedError
from carnet.text import Silent
from carnet.training.measure import Measure, faster_precision, measure_matrix_rates, recall, remember
from carnet.training.run import train

SMALL = TrainingConfig(model="carnet_n", image_size=32, epochs=2, batch_size=8, compile=False, threads=1)
PRODUCTS = "products of matrices on cpu, 1 thread"


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CARNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(("bf16", "faster"), [(0.85, "fp32"), (82.0, "fp32"), (90.0, "fp32"), (91.0, "bf16")])
def test_bf16_wins_by_a_margin(bf16: float, faster: str) -> None:
    assert faster_precision({"fp32": 82.0, "bf16": bf16}) == faster


def test_rates_are_computed_from_the_median_time() -> None:
    milliseconds = {"fp32": [1.0, 9.0, 2.0], "bf16": [40.0, 30.0, 20.0]}

    def timed(calls: Mapping[str, Callable[[], object]], rounds: int) -> Mapping[str, list[float]]:
        return {name: milliseconds[name][:rounds] for name in calls}

    # 2 x 100 x 100 x 100 operations in 2 ms and in 30 ms.
    assert measure_matrix_rates(side=100, rounds=3, timed=timed) == {"fp32": 1.0, "bf16": 0.0667}


def test_rates_are_measured() -> None:
    rates = measure_matrix_rates(rounds=1)
    assert rates.keys() == {"fp32", "bf16"}
    assert min(rates.values()) > 0


def test_the_first_measurement_counts() -> None:
    measure = FakeMeasure()
    assert measure.once("a", ("x", "y"), lambda: {"x": 1.23456, "y": 2}) == {"x": 1.23, "y": 2}
    assert measure.once("a", ("x", "y"), lambda: {"x": 7, "y": 7}) == {"x": 1.23, "y": 2}
    assert measure.once("a", ("x", "z"), lambda: {"x": 7, "z": 7}) == {"x": 7, "z": 7}
    assert measure.once("b", ("x",), lambda: {"x": 5}) == {"x": 5}


def test_rates_are_measured_once_for_each_number_of_threads(empty_cache: Path) -> None:
    remember(PRODUCTS, {"fp32": 80.0, "bf16": 89.0})
    spec = ModelSpec(model="carnet_n", classes=("a", "b"), image_size=32)
    measure = Measure.on_random_pixels(spec, 2, started=0.0)
    assert measure.matrix_rates(resolved(threads=1)) == {"fp32": 80.0, "bf16": 89.0}
    assert measure.matrix_rates(resolved(threads=2)) != {"fp32": 80.0, "bf16": 89.0}
    assert measure.matrix_rates(resolved(threads=2)) == recall()["products of matrices on cpu, 2 threads"]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="these variables are for x86-64 processors")
def test_without_bf16_instructions_muon_takes_fp32(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    script = f"""
import json
from carnet import TrainingConfig
from carnet.training.run import train
from carnet.training.measure import measure_matrix_rates
print(json.dumps(measure_matrix_rates()))
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
def test_a_resumed_run_keeps_to_its_precision(precision: str, photos: Path, tmp_path: Path, empty_cache: Path) -> None:
    rates = {"fp32": 1.0, "bf16": {"fp32": 0.1, "bf16": 10.0}[precision]}
    remember(PRODUCTS, rates)
    train(photos, SMALL, output=tmp_path / "whole", progress=Silent())
    with pytest.raises(StoppedError):
        train(photos, SMALL, output=tmp_path / "run", progress=StopAt("epoch 2/2", 1))
    # On a machine where the other one is faster.
    remember(PRODUCTS, {"fp32": rates["bf16"], "bf16": rates["fp32"]})
    asked = replace(SMALL, muon_precision={"fp32": "bf16", "bf16": "fp32"}[precision])
    with pytest.raises(RunError, match=r"--muon-precision"):
        train(config=asked, resume=tmp_path / "run", progress=Silent())
    train(resume=tmp_path / "run", progress=Silent())
    assert same_weights(tmp_path / "whole", tmp_path / "run")
    train(photos, asked, output=tmp_path / "other", progress=Silent())
    assert not same_weights(tmp_path / "whole", tmp_path / "other")


def test_measurements_are_those_of_this_machine(empty_cache: Path) -> None:
    assert recall() == {}
    remember("carnet_s", {"seconds": 21.0})
    remember("carnet_m", {"seconds": 93.0})
    remember("carnet_s", {"seconds": 40.0, "speedup": 1.25})
    assert recall() == {"carnet_s": {"seconds": 40.0, "speedup": 1.25}, "carnet_m": {"seconds": 93.0}}
    (file,) = empty_cache.iterdir()
    ((machine, known),) = json.loads(file.read_text()).items()
    file.write_text(json.dumps({f"{machine} with another instruction set": known}))
    assert recall() == {}
    remember("carnet_s", {"seconds": 1.0})
    assert recall() == {"carnet_s": {"seconds": 1.0}}
    assert len(json.loads(file.read_text())) == 2


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1, 2]",
        '{"a": 3}',
        '{"%s": [1]}',
        '{"%s": {"n": 5}}',
        '{"%s": {"n": {"seconds": "long"}}}',
        '{"%s": {"n": {"seconds": true}}}',
        '{"%s": {"n": {"seconds": -1}}}',
        '{"%s": {"n": {"seconds": 1e999}}}',
    ],
)
def test_a_file_that_holds_no_measurement(content: str, empty_cache: Path) -> None:
    remember("n", {"seconds": 1.0})
    (file,) = empty_cache.iterdir()
    (machine,) = json.loads(file.read_text())
    file.write_text(content.replace("%s", machine))
    assert recall() == {}
    remember("n", {"seconds": 7.0})
    assert recall() == {"n": {"seconds": 7.0}}


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CARNET_CACHE", str(tmp_path / "file" / "cache"))
    remember("n", {"seconds": 7.0})
    assert recall() == {}
