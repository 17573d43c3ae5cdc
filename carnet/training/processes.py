"""The processes that train one run together, and what they tell each other.

Gradients go through Lightning Fabric's strategy; here is the little besides: who writes, which share of the images is
whose, and that an error one process meets ends all of them in the same place instead of leaving the others waiting.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.loggers.logger import Logger
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import nn

from carnet.errors import CarnetError, LostProcessError
from carnet.models.device import compute_exactly
from carnet.training.plan import Plan
from carnet.training.stop import StopRequestError

Item = TypeVar("Item")
Answer = TypeVar("Answer")

PATIENCE = timedelta(hours=2)
"""How long one process waits for another that is alive, for example while the first looks at all images."""


def launched_together() -> bool:
    """Whether this is one of several processes that torchrun, or we, have started for one run."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and {"RANK", "LOCAL_RANK"} <= os.environ.keys()


@dataclass(frozen=True)
class Processes:
    """One of them, with its place among all."""

    rank: int = 0
    size: int = 1
    local_size: int = 1
    """How many of them are on this machine."""

    @classmethod
    @contextmanager
    def join(cls, device: str, store: Any = None) -> Iterator[Processes]:
        """Meet the others that were started with this one, for as long as the block runs.

        Args:
            device: cpu or cuda; each process of a machine takes a GPU of its own.
            store: where they meet; None: at the address torchrun gives.
        """
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # Gradients on GPUs go through NCCL; what else is said goes through gloo, which notices a dead process at once.
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
        try:
            yield cls(rank, size, int(os.environ.get("LOCAL_WORLD_SIZE", size)))
        finally:
            # What still refers to the group (DDP does, in a circle) would end it while Python shuts down, which aborts.
            gc.collect()
            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of some work: every item belongs to exactly one of them."""
        return items[self.rank :: self.size]

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all processes."""
        if self.size == 1:
            return list(values)
        with self.noticing_loss():
            total = torch.tensor(values, dtype=torch.float64)
            dist.all_reduce(total)
            return list(total.tolist())

    def agree(self, error: Exception | None) -> None:
        """Go on if all can; otherwise raise in every process what one of them has met."""
        (num_errors,) = self.sum(error is not None)
        if num_errors:
            self.gather(lambda: _raise(error))

    def gather(self, work: Callable[[], Answer]) -> list[Answer]:
        """Do some work in every process and give each of them all answers, in the order of ranks.

        Raises:
            Exception: what the first process to fail has raised, in every process.
        """
        if self.size == 1:
            return [work()]
        answers: list[Any] = [None] * self.size
        with self.noticing_loss():
            dist.all_gather_object(answers, _outcome(work))
        return [_unpack(answer) for answer in answers]

    def from_first(self, work: Callable[[], Answer]) -> Answer:
        """Do some work in the first process alone and give every process its answer.

        Raises:
            Exception: what it raised, in every process.
        """
        if self.size == 1:
            return work()
        answer: list[Any] = [_outcome(work) if self.is_first else None]
        with self.noticing_loss():
            dist.broadcast_object_list(answer, device=torch.device("cpu"))
        unpacked: Answer = _unpack(answer[0])
        return unpacked

    def share_buffers(self, network: nn.Module) -> None:
        """Give every process the first one's buffers: all judge with the batch-norm statistics that are saved."""
        if self.size == 1:
            return
        with self.noticing_loss():
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)

    @contextmanager
    def noticing_loss(self) -> Iterator[None]:
        """Say in one sentence that another process is dead, whichever way the back end puts it.

        Raises:
            LostProcessError: instead of its error.
        """
        try:
            yield
        except RuntimeError as error:
            signs = ("gloo", "nccl", "connection", "peer")
            if self.size == 1 or not (isinstance(error, dist.DistError) or any(s in str(error).lower() for s in signs)):
                raise
            raise LostProcessError(f"another of the {self.size} processes of this run has ended") from error

    def fabric(self, plan: Plan, loggers: list[Logger]) -> Fabric:
        """Lightning Fabric for this process: places the network, sets its precision, sums gradients over all."""
        # It would name the precision on standard error each time; the plan has said it.
        logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        torch.set_num_threads(plan.threads)
        torch.backends.cudnn.deterministic = True
        compute_exactly()
        if self.size == 1:
            return Fabric(accelerator=plan.device, devices=1, precision=plan.fabric_precision, loggers=loggers)
        fabric = Fabric(
            accelerator=plan.device,
            devices=self.local_size,
            num_nodes=self.size // self.local_size,
            strategy=DDPStrategy(timeout=PATIENCE),
            precision=plan.fabric_precision,
            plugins=[TorchElasticEnvironment()],
            loggers=loggers,
        )
        fabric.launch()
        return fabric


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error


def _outcome(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except (CarnetError, StopRequestError) as error:
        return error


def _unpack(outcome: Any) -> Any:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
