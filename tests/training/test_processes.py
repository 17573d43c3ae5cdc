"""Two processes train one run on this machine's CPU."""

import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import finished
from runs import new_job
from together import die, losses_with_frozen_batch_norm

from carnet import TrainingConfig
from carnet.data.samples import Sample
from carnet.errors import ConfigError, DataError, ImageError, LostProcessError, StoppedError
from carnet.text import Silent
from carnet.training.augment import Augmentation
from carnet.training.distributed import Processes, StopFlag, launch
from carnet.training.pipeline import ImageFiles, Pipeline
from carnet.training.resolve import device_and_number
from carnet.training.run import train

# 24 training and 12 validation images: batches of 9, 9 and 6, shared as 5 + 4 and 3 + 3.
TWO = TrainingConfig(model="carnet_n", image_size=48, epochs=2, batch_size=9, devices=2, threads=1, precision="fp32")


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**(TWO.to_json() | changes))


@pytest.fixture(autouse=True)
def processes(request: pytest.FixtureRequest) -> None:
    """Start processes quickly, except where a test needs them as users have them."""
    if "started_afresh" not in request.keywords:
        request.getfixturevalue("quick_processes")


@pytest.mark.parametrize(("num_images", "steps"), [(24, 3), (22, 3), (21, 2), (20, 2), (9, 1), (4, 1)])
def test_every_image_belongs_to_one_process(num_images: int, steps: int) -> None:
    files = ImageFiles([Sample(Path(str(number)), 0) for number in range(num_images)], seed=0)
    pipeline = Pipeline(files, lambda _: np.zeros((8, 8, 3), np.uint8), Augmentation(0, 0, 0), 0, batch_size=9)
    shares = [[[item.place for item in items] for items in pipeline.items(0, 0, rank, 2)] for rank in (0, 1)]
    assert [len(share) for share in shares] == [steps, steps] == [pipeline.steps_per_epoch(2)] * 2
    whole = [[item.place for item in items] for items in pipeline.items(0, 0)]
    batches = [sorted([*one, *other]) for one, other in zip(*shares, strict=True)]
    assert sorted(place for batch in batches for place in batch) == list(range(num_images))
    assert all(len(part) >= 2 for share in shares for part in share)
    if len(whole) == steps:
        assert batches == [sorted(batch) for batch in whole]


@pytest.mark.started_afresh
def test_with_frozen_batch_norm_two_processes_learn_like_one(photos: Path, tmp_path: Path) -> None:
    single = new_job(photos, config(devices=1, lr=2e-3), tmp_path / "one")
    losses, state = losses_with_frozen_batch_norm(single, Processes(), Silent(), StopFlag())
    job = new_job(photos, config(lr=2e-3), tmp_path / "two")
    two, two_state = launch(losses_with_frozen_batch_norm, job, size=2, device="cpu", progress=Silent())
    assert len(losses) == 6
    assert two == pytest.approx(losses, rel=1e-4)
    assert max(losses) - min(losses) > 100 * 1e-4  # the network has learned
    for one, other in zip(state.history, two_state.history, strict=True):
        for name in ("train_loss", "train_top1", "valid_loss", "valid_top1"):
            assert other[name] == pytest.approx(one[name], rel=1e-3)


class StopInSecondEpoch(Silent):
    def bar(self, what: str, done: int, total: int, note: str = "") -> None:
        if (what, done) == ("epoch 2/20", 1):
            signal.raise_signal(signal.SIGINT)


def test_two_processes_stop_and_resume_to_the_same_weights(photos: Path, tmp_path: Path) -> None:
    # The signal takes a while to reach the processes, which go on meanwhile.
    recipe = config(epochs=20, image_size=32)
    whole = train(photos, recipe, output=tmp_path / "whole", progress=Silent())
    assert (whole.report.num_images, whole.document["num_images"]) == (12, {"train": 24, "valid": 12})
    assert whole.report.top1 == whole.history[-1]["valid_top1"]
    with pytest.raises(StoppedError, match=r"epoch \d+ of 20, step \d of 3.*--resume") as stopped:
        train(photos, recipe, output=tmp_path / "run", progress=StopInSecondEpoch())
    assert stopped.value.exit_code == 130
    train(resume=tmp_path / "run", progress=Silent())
    one, other = (tmp_path / name / "model.safetensors" for name in ("whole", "run"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_dead_process_ends_the_others(rank: int, photos: Path, tmp_path: Path) -> None:
    job = new_job(photos, TWO, tmp_path / "run")
    started = time.monotonic()
    with pytest.raises(LostProcessError, match=rf"process {rank + 1} of 2.*SIGKILL"):
        launch(die, (job, rank), size=2, device="cpu", progress=Silent())
    assert time.monotonic() - started < 120  # not the hours that they wait for one that is alive


def test_an_error_in_one_process_ends_all(photos: Path, tmp_path: Path) -> None:
    job = new_job(photos, config(cache="off"), tmp_path / "run")
    item = next(job.pipeline.items(0, 0, 1, 2))[0]
    missing = job.scan.images.data.splits["train"][item.place]
    object.__setattr__(missing, "path", missing.path.with_name("gone.jpg"))
    with pytest.raises(ImageError, match=r"gone\.jpg") as error:
        launch(die, (job, -1), size=2, device="cpu", progress=Silent())
    assert Path(error.value.source).name == "gone.jpg"
    assert job.run.checkpoint.exists()


def test_refusals(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"--batch-size.* 8 devices"):
        config(devices=8)
    with monkeypatch.context() as patch:
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}.items():
            patch.setenv(name, value)
        with pytest.raises(ConfigError, match=r"--devices 2.* 4 "):
            device_and_number(TWO)
    with pytest.raises(DataError, match=r"24 training images.*--devices 16"):
        new_job(photos, config(devices=16, batch_size=32), tmp_path / "run")


@pytest.mark.slow
def test_torchrun(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = [
        "--model",
        "carnet_n",
        "--image-size",
        "48",
        "--epochs",
        "2",
        "--batch-size",
        "9",
        "--threads",
        "1",
        # As in TWO: two runs may measure differently.
        "--precision",
        "fp32",
        "--output",
        str(run),
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    answer = finished([*torchrun, "-m", "carnet", "train", photos, *flags])
    assert answer.returncode == 0, answer.stderr
    assert len(re.findall(r"^epoch \d/2: ", answer.stdout, re.MULTILINE)) == 2
    assert answer.stdout.count("Try it:") == 1
    train(photos, TWO, output=tmp_path / "ours", progress=Silent())
    assert (run / "model.safetensors").read_bytes() == (tmp_path / "ours" / "model.safetensors").read_bytes()
    failed = finished([*torchrun, "-m", "carnet", "train", tmp_path / "nowhere", *flags[:-1], tmp_path / "x"])
    assert failed.stderr.count("carnet: ") == 1
