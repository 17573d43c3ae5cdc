"""The training state: progress over a length that may change, also from checkpoints of older versions."""

from pathlib import Path
from typing import Any

import pytest
from runs import StopAt, resumed_job, rewrite_checkpoint

from carnet import TrainingConfig
from carnet.errors import StoppedError
from carnet.text import Silent
from carnet.training.checkpoint import TrainingState
from carnet.training.distributed import Processes
from carnet.training.loop import Training
from carnet.training.run import train

SMALL = TrainingConfig(model="carnet_n", image_size=48, epochs=4, batch_size=8)


def test_progress_is_the_share_of_the_planned_steps() -> None:
    state = TrainingState(num_steps=8)
    assert [state.progress(done) for done in (0, 2, 8)] == [0, 0.25, 1]


@pytest.mark.parametrize("num_steps", [6, 20])
def test_progress_is_continuous_where_the_length_changes(num_steps: int) -> None:
    state = TrainingState(num_steps=8)
    state.plan(num_steps, 4)
    assert state.progress(4) == 0.5
    assert state.progress(2) == 0.25
    assert state.progress((4 + num_steps) / 2) == pytest.approx(0.75)
    assert state.progress(num_steps) == 1
    state.plan(num_steps + 3, 5)
    assert state.progress(5) < state.progress(6) < state.progress(num_steps + 3) == 1


def test_a_run_that_ends_at_once_keeps_its_progress() -> None:
    state = TrainingState(num_steps=8)
    state.plan(4, 4)
    assert state.progress(4) == 0.5
    assert state.progress(3) < 0.5


@pytest.mark.parametrize("finished", [False, True])
def test_checkpoints_of_the_first_versions_keep_their_progress(finished: bool, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(photos, SMALL, output=run, progress=StopAt("epoch 2/4", 1))

    def as_before(state: dict[str, Any]) -> dict[str, Any]:
        del state["planned_at"], state["planned_progress"]
        # A budget had shortened the run.
        return state | {"num_steps": 8, "progress": 0.25, "began_at": 0.2, "finished": finished}

    rewrite_checkpoint(run / "last.ckpt", format="carnet checkpoint 6", state=as_before)
    training = Training(resumed_job(run), Processes(), Silent())
    assert training.state.progress(training.steps_done) == 0.25
    assert training.steps_done == 4
    assert training.state.num_steps == (4 if finished else 8)
