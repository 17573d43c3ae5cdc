"""Work for several processes; a module of its own, because new processes import it by name."""

from __future__ import annotations

import os
import signal
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from carnet.text import Progress
from carnet.training.checkpoint import TrainingState
from carnet.training.distributed import Processes, StopFlag, StopRequestError
from carnet.training.hooks import built_in_callbacks
from carnet.training.loop import Callback, Training, fit_job
from carnet.training.preparation import Job
from carnet.training.step import StepResult


def losses_with_frozen_batch_norm(
    job: Job, processes: Processes, progress: Progress, stop: StopFlag
) -> tuple[list[float], TrainingState]:
    """Train with batch norm in evaluation mode; return the loss of every step."""
    for module in job.network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
            module.train = lambda mode=True, module=module: module  # type: ignore[assignment, misc]
    losses = Losses()
    state = fit_job(job, processes, progress, stop, [*built_in_callbacks(), losses])
    return losses.seen, state


class Losses(Callback):
    """Remembers the loss of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_step_end(self, run: Training, result: StepResult, seconds: float) -> None:
        """Remember the loss."""
        self.seen.append(result.loss)


class DyingAt(StopFlag):
    """Kills the process before its third step."""

    def __init__(self, dies: bool) -> None:
        super().__init__()
        self.dies, self.asked = dies, 0

    @property
    def request(self) -> StopRequestError | None:
        """No stop is requested."""
        self.asked += 1
        if self.dies and self.asked == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return None


def die(job: tuple[Job, int], processes: Processes, progress: Progress, stop: StopFlag) -> Any:
    """Train, and kill the process with a given rank before its third step."""
    return fit_job(job[0], processes, progress, DyingAt(processes.rank == job[1]), built_in_callbacks())
