"""Work that tests give to several processes at once; a module of its own, because new processes import it by name."""

from __future__ import annotations

import os
import signal
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from carnet.text import Progress
from carnet.training.checkpoint import TrainingState
from carnet.training.distributed import Processes
from carnet.training.loop import Trainer
from carnet.training.preparation import Job
from carnet.training.stop import StopFlag


def losses_with_frozen_batch_norm(
    job: Job, processes: Processes, progress: Progress, stop: StopFlag
) -> tuple[list[float], TrainingState]:
    """Train with batch norm in evaluation mode throughout; the loss of every step."""
    for module in job.network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
            module.train = lambda mode=True, module=module: module  # type: ignore[assignment, misc]
    trainer = Trainer(job, processes, progress)
    losses: list[float] = []
    after_step = trainer._after_step

    def recording(loss: float, seconds: float) -> None:
        losses.append(loss)
        after_step(loss, seconds)

    trainer._after_step = recording  # type: ignore[method-assign]
    return losses, trainer.fit(stop)


def die(job: tuple[Job, int], processes: Processes, progress: Progress, stop: StopFlag) -> Any:
    """Train, and kill the process of a given rank before its third step."""
    trainer = Trainer(job[0], processes, progress)
    train_step = trainer._train_step

    def dying(*arguments: Any) -> Any:
        if processes.rank == job[1] and trainer.state.step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return train_step(*arguments)

    trainer._train_step = dying  # type: ignore[method-assign]
    return trainer.fit(stop)
