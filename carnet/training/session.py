"""A run from beginning to end: prepare, train, judge; in this process, or in several."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from carnet.errors import ConfigError, DataError, UnreadableImagesError, explaining_lack_of_memory
from carnet.progress import Progress, Silent, first_few, quoted
from carnet.report.console import Console
from carnet.run_folder import RunFolder
from carnet.training.config import TrainingConfig
from carnet.training.launch import launch
from carnet.training.memory import return_freed_memory
from carnet.training.plan import resolve
from carnet.training.preparation import Job, prepare
from carnet.training.processes import Processes, launched_together
from carnet.training.result import TrainingResult, finish
from carnet.training.resumption import prepare_resumed
from carnet.training.state import TrainingState
from carnet.training.stop import StopFlag, catch_stop_signals
from carnet.training.trainer import Trainer


def train(
    data: Path | str | None = None,
    config: TrainingConfig | None = None,
    *,
    output: Path | str | None = None,
    init: Path | str | None = None,
    resume: Path | str | None = None,
    ignore: Sequence[str] = (),
    progress: Progress | None = None,
) -> TrainingResult:
    """Train a classifier on labelled images.

    With `config.devices` above 1, processes are started for them; a script that calls this then needs the usual
    `if __name__ == "__main__":`. Under torchrun every process calls this, and gets the same result.

    Args:
        data: the images, in a form `carnet.data.sources` describes; with `resume`, None is where they were.
        config: the recipe; None: the recommended one, or with `resume` the run's own.
        output: folder of the run, which must be new or empty; None: `runs/<data>-<model>`, numbered if taken. With
            `resume`, the run is copied there and goes on there.
        init: another run whose weights to start from.
        resume: a run to go on with, from its last checkpoint.
        ignore: paths of images to leave out, below the data's folder or whole; with `resume`, none is those of the run.
        progress: shown what happens; None: standard error; `carnet.progress.Silent()`: nobody.

    Returns:
        The result, once the last epoch is done.

    Raises:
        CarnetError: one of its kinds, see `carnet.errors`.
    """
    if launched_together() and os.environ["RANK"] != "0":
        progress = Silent()
    if progress is None and sys.stderr is None:
        # A program without a console.
        progress = Silent()
    if progress is None:
        with Console(sys.stderr) as console:
            return train(data, config, output=output, init=init, resume=resume, ignore=ignore, progress=console)
    started = time.monotonic()
    if resume is not None and init is not None:
        raise ConfigError("--resume goes on with a run's own weights; leave --init out")
    if resume is None and data is None:
        raise ConfigError("say which images to train on: carnet train DATA (or --resume RUN)")
    config = config or _recipe(resume)
    if config.max_memory:
        return_freed_memory()
    # torchrun says how many processes it has started, here and in all.
    num_launched, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    together = launched_together()
    plan = resolve(config, num_launched=num_launched if together else 1, on_this_machine=here)

    def begin() -> Job:
        if resume is None:
            assert data is not None
            job = prepare(
                data, config, plan, output=output, init=init, ignore=ignore, started=started, progress=progress
            )
            holding.enter_context(job.run.held())
            return job
        run = RunFolder.open(resume)
        if output is not None:
            run = run.copy_to(Path(output))
        holding.enter_context(run.held())
        return prepare_resumed(run, data, config, plan, ignore=ignore, progress=progress)

    with ExitStack() as holding, _explaining_lack_of_memory():
        if together:
            with Processes.join(plan.device) as processes:
                job = processes.from_first(begin)
                with catch_stop_signals() as stop:
                    state = fit(job, processes, progress, stop)
                return processes.from_first(lambda: _finish(job, state, progress))
        job = begin()
        if plan.devices > 1:
            state = launch(fit, job, size=plan.devices, device=plan.device, progress=progress)
        else:
            with catch_stop_signals() as stop:
                state = fit(job, Processes(), progress, stop)
        return _finish(job, state, progress)


def fit(job: Job, processes: Processes, progress: Progress, stop: StopFlag) -> TrainingState:
    """Train, as one of the processes.

    Raises:
        CarnetError: what `Trainer.fit` raises.
    """
    with _explaining_lack_of_memory():
        return Trainer(job, processes, progress).fit(stop)


def _explaining_lack_of_memory() -> AbstractContextManager[None]:
    return explaining_lack_of_memory(
        "training", "close other programs, or take a smaller --micro-batch or --image-size"
    )


def _finish(job: Job, state: TrainingState, progress: Progress) -> TrainingResult:
    """Judge, and say where the work of hours is if that fails."""
    missing = f"training is done, its report is missing: carnet train --resume {quoted(job.run.path)} writes it"
    try:
        return finish(job, state, progress)
    except KeyboardInterrupt:
        progress.say(f"Stopped; {missing}.")
        raise
    except UnreadableImagesError as error:
        gone = first_few([str(image) for image in error.errors])
        raise DataError(f"{missing}, when these can be read again: {gone}") from error


def _recipe(resume: Path | str | None) -> TrainingConfig:
    if resume is None:
        return TrainingConfig()
    run = RunFolder.open(resume)
    return TrainingConfig.from_json(run.read_config()["recipe"], run.config)
