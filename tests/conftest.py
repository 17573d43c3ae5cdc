"""Small data sets that tests draw for themselves."""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from pictures import COLOURS, save_picture

if "CARNET_TEST_GPU" not in os.environ:
    # What tests expect is what a processor does; test_gpu.py is for the other.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    # Each worker and the processes it starts have one core, and so one thread: threads that share cores wait long.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

# The libraries of the Hugging Face Hub read these when they are imported: nothing is fetched, or kept at home.
hub_home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": hub_home.name}

# PyTorch compiled anew at each start takes seconds.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A machine that does other work is no reason for a test to fail.
settings.register_profile("carnet", deadline=None)
settings.load_profile("carnet")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept from run to run is kept with the tests, also in the processes they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CARNET_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line inside this process, and return its exit code, standard output and standard error."""

    from carnet.cli.main import run

    def called(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return called


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Three classes of ten pictures, in no splits."""
    root = tmp_path / "flat"
    for k, (name, colour) in enumerate(COLOURS.items()):
        for i in range(10):
            save_picture(root / name / f"{i}.png", colour, seed=100 * k + i)
    return root


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, eight training and four validation pictures each. Read only."""
    root = tmp_path_factory.mktemp("data") / "photos"
    for k, (name, colour) in enumerate(COLOURS.items()):
        for i in range(12):
            split = "train" if i < 8 else "valid"
            save_picture(root / split / name / f"{i}.jpg", colour, seed=100 * k + i)
    return root


@pytest.fixture(scope="session")
def trained_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short finished run on `photos`. Read only."""
    from carnet import TrainingConfig
    from carnet.training.run import train

    run = tmp_path_factory.mktemp("runs") / "photos"
    train(photos, TrainingConfig(model="carnet_n", image_size=48, epochs=2, batch_size=8), output=run)
    return run


@pytest.fixture
def quick_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of a run come from a server that has imported PyTorch; started afresh, each takes seconds for that."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return
    from torch.multiprocessing.spawn import start_processes

    from carnet.comparison import runs
    from carnet.training import distributed as launch

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["carnet.training.run", "torch._dynamo", "matplotlib.figure", "together"])
    monkeypatch.setattr(launch, "spawn", functools.partial(start_processes, start_method="forkserver"))
    for module in (launch, runs):
        monkeypatch.setattr(module, "get_context", lambda _: context)


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Find a real data set, or skip."""

    def find(name: str) -> Path:
        if not (SHARED_DATA / name).is_dir():
            pytest.skip(f"the real data set {name} is not on this machine")
        return SHARED_DATA / name

    return find


@pytest.fixture(scope="session")
def exported(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run as a model file. Read only."""
    from carnet import export_model

    return export_model(trained_run, tmp_path_factory.mktemp("exported") / "photos.onnx").path
