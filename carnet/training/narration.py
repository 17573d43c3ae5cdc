"""What training says on its way: epoch lines, the time left, why it ended and how to go on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from carnet.config import ResolvedConfig
from carnet.errors import NonFiniteLossError
from carnet.text import counted, duration, quoted
from carnet.training.checkpoint import EpochMetrics, TrainingState
from carnet.training.preparation import Job
from carnet.training.schedule import initial_side, mean_cost, side_at, step_cost


def num_epochs(state: TrainingState, steps_per_epoch: int) -> int:
    """Epochs of the run as it is planned now; the last one may be cut short."""
    return -(-state.num_steps // steps_per_epoch)


def epoch_line(
    epoch: EpochMetrics, num_epochs: int, config: ResolvedConfig, state: TrainingState, *, seconds_left: float
) -> str:
    """How an epoch went, as the last of the state, and how long the rest of the run takes, validation counted."""
    left = f", about {duration(seconds_left)} left" if seconds_left > 0 else ""
    best = f" (best so far, by {'the loss' if state.epochs_since_best else 'top-1'})" if state.best is epoch else ""
    growing = f"{epoch['image_size']:.0f} px, " if initial_side(config) < config.image_size else ""
    return (
        f"epoch {epoch['epoch']:.0f}/{num_epochs}: "
        f"train loss {epoch['train_loss']:.3f}, top-1 {100 * epoch['train_top1']:.1f} %; "
        f"valid loss {epoch['valid_loss']:.3f}, top-1 {100 * epoch['valid_top1']:.1f} %{best}; "
        f"{growing}{epoch['images_per_second']:.1f} images/s, {duration(epoch['seconds'])} so far{left}"
    )


def forecast(session_steps: Sequence[float], job: Job, state: TrainingState, steps_per_epoch: int) -> str:
    """How long it will take, from the seconds of the steps so far; the first ones are slower and do not count."""
    step_seconds = float(np.median(session_steps[len(session_steps) // 2 :]))
    left = state.num_steps - state.epoch * steps_per_epoch - state.step
    # Images may still grow.
    progress = state.progress(state.epoch * steps_per_epoch + state.step)
    cost = step_cost(side_at(progress, job.config), job.config)
    rest = left * step_seconds * mean_cost(job.config, progress) / cost
    return (
        f"{step_seconds:.2f} s a step, {job.config.batch_size / step_seconds:.1f} images/s: "
        f"about {duration(steps_per_epoch * step_seconds)} an epoch and {duration(rest)} to the end, "
        f"validation not counted"
    )


def stopped(job: Job, state: TrainingState, steps_per_epoch: int) -> str:
    """Where a run was when it was asked to stop."""
    return f"stopped in {_where(state, steps_per_epoch)}; {go_on(job)}"


def less_at_a_time(state: TrainingState) -> str:
    """That a GPU's memory ran out in the step just done, and what became of it."""
    return (
        f"out of memory in epoch {state.epoch + 1}, step {state.step}: from there on {state.micro_batch} images go "
        f"through the network at a time, and batch-norm statistics are those of {state.micro_batch}"
    )


def time_is_up(config: ResolvedConfig, state: TrainingState, steps_per_epoch: int) -> str:
    """That the budget is spent before the epochs are."""
    return f"the budget of {config.budget} was spent in {_where(state, steps_per_epoch)}"


def other_length(config: ResolvedConfig, state: TrainingState, steps_per_epoch: int) -> str:
    """That the run was made shorter or longer than planned, to end in time."""
    return (
        f"{counted(config.epochs, 'epoch')} were planned from a short measurement; at the pace of the run "
        f"{state.num_steps / steps_per_epoch:.1f} fitted into {config.budget}"
    )


def patience_is_over(config: ResolvedConfig, state: TrainingState) -> str:
    """Why the run ends before its last epoch, and which epoch is kept."""
    assert state.best is not None
    first, kept = state.epoch - state.epochs_since_best, round(state.best["epoch"])
    return (
        f"stopped early: {counted(config.patience, 'epoch')} without a better validation accuracy than the "
        f"{100 * state.best['valid_top1']:.1f} % of epoch {first}"
        + (f"; kept is epoch {kept}, as accurate and with a lower loss" if kept != first else ", which is kept")
    )


def _where(state: TrainingState, steps_per_epoch: int) -> str:
    epochs = num_epochs(state, steps_per_epoch)
    return f"epoch {state.epoch + 1} of {epochs}, step {state.step} of {steps_per_epoch}"


def go_on(job: Job) -> str:
    """The command that takes the run up again."""
    return f"go on with carnet train --resume {quoted(job.run.path)}"


def require_finite(loss: float, where: str, job: Job, state: TrainingState) -> None:
    """End a run that diverges, while its last checkpoint is good.

    Raises:
        NonFiniteLossError: if the loss is infinite or not a number.
    """
    if math.isfinite(loss):
        return
    lr = job.config.lr
    raise NonFiniteLossError(
        f"the loss became {loss} in epoch {state.epoch + 1}, {where}, at learning rate {lr:g}; "
        f"try a smaller one, --lr {lr / 10:g}"
        + (", or --precision fp32" if job.config.precision != "fp32" else "")
        + f"; the last good checkpoint is {job.run.checkpoint}"
    )
