"""The training loop: read `fit` from top to bottom, and `TrainingStep.__call__` for what a step does.

What decides (a budget, patience, a stop) is here, and of several processes the first one's word counts. What only looks
on (progress lines, checkpoints, tables, curves, loggers) is a callback of `carnet.training.hooks`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from carnet.errors import DataError, LostProcessError, StoppedError
from carnet.text import Progress
from carnet.training import narration
from carnet.training.checkpoint import TrainingState
from carnet.training.distributed import Processes
from carnet.training.hooks import Callback, Callbacks, built_in_callbacks
from carnet.training.pipeline import step_seed
from carnet.training.preparation import Job
from carnet.training.schedule import lr_ratio
from carnet.training.session import Training
from carnet.training.step import explaining_out_of_memory
from carnet.training.stop import StopFlag, StopRequestError


def fit(
    job: Job, processes: Processes, progress: Progress, stop: StopFlag, callbacks: Sequence[Callback] = ()
) -> TrainingState:
    """Train to the last planned step, or to the end of patience.

    Args:
        job: what to train, on what, and how.
        processes: this one of those that train together.
        progress: shown what happens.
        stop: asks for the end at the next step.
        callbacks: told of every step and epoch, in the first process alone.

    Raises:
        StoppedError: on Ctrl-C or SIGTERM, after a checkpoint.
        NonFiniteLossError: before the step that would spoil the weights.
        OutOfMemoryError: if a step does not fit.
        ImageError: if an image has gone or changed since it was checked, after a checkpoint.
        OutputError: if the run folder cannot be written.
        LostProcessError: if another process of the run has died.
    """
    run = Training(job, processes, progress)
    config, state, step, average = run.config, run.state, run.step, run.average
    hooks = Callbacks(run, [*built_in_callbacks(), *callbacks])
    hooks.tell("on_fit_start")
    try:
        # Steps that no validation has followed yet may be the last ones.
        while run.steps_left > 0 or state.step:
            run.network.train()
            started = time.perf_counter()
            for batch in run.batches(stop):
                # Taken in the middle of the step, so that neither the first nor the last one is lost.
                ratio = lr_ratio(state.progress(run.steps_done + 0.5), config)
                seed = step_seed(config.seed, state.epoch, state.step, processes.rank)
                with explaining_out_of_memory(config.image_size, step.micro_batch):
                    result = step(batch, seed, run.require_finite, lr_ratio=ratio)
                if average is not None:
                    average.update(run.steps_done)
                now = time.perf_counter()
                state.add_step(result.loss, result.num_correct, result.num_images, now - started)
                run.note_micro_batch()
                hooks.tell("on_step_end", result, now - started)
                started = now
                run.keep_time()
            valid = run.validate(stop)
            state.seconds += time.perf_counter() - started
            lr, started = step.optimizer.param_groups[0]["lr"], time.perf_counter()
            state.end_epoch(valid, lr=lr, image_size=run.view(run.steps_done - 1).side)
            run.plan_rest()
            hooks.tell("on_epoch_end")
            # Writing takes time too, which counts where there is a budget.
            state.seconds += time.perf_counter() - started
    except StopRequestError as request:
        hooks.tell("on_interrupt")
        raise StoppedError(narration.stopped(job, state, run.steps_per_epoch), request.signal_number) from None
    except DataError:
        hooks.tell("on_interrupt")
        raise
    except LostProcessError as error:
        # Somewhere inside a step: what the last checkpoint holds is the last that is certain.
        raise LostProcessError(f"{error}; {narration.go_on(job)}") from error
    hooks.tell("on_fit_end")
    return state
