"""Networks by name, runs and model files, timed in turns."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from children import finished

from carnet.cli.main import run
from carnet.comparison.latency import Benchmark, Timing, benchmark
from carnet.errors import ConfigError, ModelError, ModelFileError


def test_statistics_of_turns() -> None:
    timing = Timing("a", "pytorch", 64, 4, (1.0, 2.0, 3.0, 10.0))
    assert timing.median_ms == 2.5
    assert timing.images_per_second == 1600
    slower = Timing("b", "pytorch", 64, 4, (5.0, 5.0, 5.0, 5.0))
    alone = Timing("b", "pytorch", 64, 1, (2.0, 2.0))
    result = Benchmark((timing, slower, alone), threads=1, rounds=4, device="cpu", device_name="a processor")
    assert [result.times_the_first(each) for each in result.timings] == [1, 2, 1]
    assert [each["times_the_first"] for each in result.to_json()["timings"]] == [1, 2, 1]


def test_names_runs_and_files(trained_run: Path, exported: Path) -> None:
    names = ["carnet_n@32", str(trained_run), str(exported), "carnet_n@32"]
    result = benchmark(names, batch_sizes=(1, 3), rounds=2, num_classes=4)
    found = [(timing.model, timing.runtime, timing.image_size, timing.batch_size) for timing in result.timings]
    assert found == [
        ("carnet_n@32", "onnxruntime", 32, 1),
        ("carnet_n@32", "onnxruntime", 32, 3),
        ("carnet_n@32", "pytorch", 32, 1),
        ("carnet_n@32", "pytorch", 32, 3),
        (str(trained_run), "onnxruntime", 48, 1),
        (str(trained_run), "onnxruntime", 48, 3),
        (str(trained_run), "pytorch", 48, 1),
        (str(trained_run), "pytorch", 48, 3),
        # PyTorch does not run files.
        (str(exported), "onnxruntime", 48, 1),
        (str(exported), "onnxruntime", 48, 3),
    ]
    assert all(len(timing.milliseconds) == 2 and timing.median_ms > 0 for timing in result.timings)
    machine = result.to_json()["machine"]
    assert machine["instruction_set"]
    assert all(machine["matrix_gflops"][precision] > 0 for precision in ("fp32", "bf16"))


def test_pytorch_gets_its_threads_back() -> None:
    import torch

    before = torch.get_num_threads()
    benchmark(["carnet_n@32"], runtimes=["pytorch"], threads=before + 1, rounds=1)
    assert torch.get_num_threads() == before


def test_the_command_prints_what_the_function_returns(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(exported)
    assert (
        run(["benchmark", model, "--runtimes", "onnxruntime", "--batch-sizes", "1,2", "--rounds", "2", "--json"]) == 0
    )
    printed = json.loads(capsys.readouterr().out)
    result = benchmark(exported, runtimes=["onnxruntime"], batch_sizes=(1, 2), rounds=2).to_json()
    assert printed.keys() == result.keys()
    assert [printed[name] for name in ("machine", "threads", "rounds")] == [
        result[name] for name in ("machine", "threads", "rounds")
    ]
    for one, other in zip(printed["timings"], result["timings"]):
        assert one.keys() == other.keys()
        assert (one["model"], one["runtime"], one["batch_size"]) == (model, "onnxruntime", other["batch_size"])


@pytest.mark.parametrize(
    ("models", "others", "error", "named"),
    [
        ([], {}, ConfigError, "."),
        (["carnet_n"], {"runtimes": []}, ConfigError, "--runtimes.*pytorch, onnxruntime, openvino"),
        (["carnet_n"], {"runtimes": ["tensorrt"]}, ConfigError, "--runtimes.*tensorrt"),
        (["carnet_n"], {"batch_sizes": [4, 0]}, ConfigError, "--batch-sizes.*0"),
        (["carnet_n"], {"threads": 0}, ConfigError, "--threads.*0"),
        (["carnet_n"], {"rounds": 0}, ConfigError, "--rounds.*0"),
        (["carnet_n@big"], {}, ConfigError, "carnet_n@big"),
        (["carnet18@40"], {}, ModelError, "carnet18.*47.*40"),
        (["carnet_x"], {}, ModelError, "carnet_x"),
        (["nowhere.onnx"], {}, ModelFileError, "nowhere.onnx"),
    ],
)
def test_nonsense(models: list[str], others: dict[str, object], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        benchmark(models, **others)  # type: ignore[arg-type]


def test_a_file_is_not_for_pytorch(exported: Path) -> None:
    with pytest.raises(ConfigError, match="--runtimes"):
        benchmark([str(exported)], runtimes=["pytorch"])


def test_files_are_timed_without_pytorch(exported: Path) -> None:
    """As on a device that has none."""
    script = (
        "import sys; from carnet.cli.main import run; code = run(sys.argv[1:]); print('torch' in sys.modules); "
        "sys.exit(code)"
    )
    command = [sys.executable, "-c", script, "benchmark", str(exported), "--rounds", "2"]
    answer = finished(command, check=True)
    table, _, last = answer.stdout.rstrip().rpartition("\n")
    assert last == "False"
    assert "onnxruntime" in table.splitlines()[1]
