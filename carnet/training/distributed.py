"""The processes that train one run together, and what they tell each other.

Gradients go through Lightning Fabric's strategy; here is the little besides: who writes, which share of the images is
whose, and that an error one process meets ends all of them in the same place instead of leaving the others waiting.

`--devices N`: start N processes on this machine, pass on what the first one says, and end all if one dies.

They are started afresh ("spawn"), which works on every system, and meet the way torchrun's do, so that training knows
one way only. The process that starts them stays outside: it keeps the terminal, and ends with one clear message.
"""

from __future__ import annotations

import gc
import logging
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.queues import Queue
from queue import Empty
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.loggers.logger import Logger
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.multiprocessing import get_context
from torch.multiprocessing.spawn import ProcessContext, ProcessException, spawn

from carnet.config import Precision, ResolvedConfig
from carnet.errors import CarnetError, LostProcessError
from carnet.models.weights import compute_exactly
from carnet.text import Progress, Silent
from carnet.training.stop import STOP_SIGNALS, StopFlag, StopRequestError, catch_stop_signals, how_it_ended

Item = TypeVar("Item")
Answer = TypeVar("Answer")

PATIENCE = timedelta(hours=2)
"""How long one process waits for another that is alive, for example while the first looks at all images."""


_FABRIC_PRECISIONS: dict[Precision, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}


def num_launched() -> int:
    """How many processes torchrun has started for one run, here and elsewhere; 1: we start them ourselves."""
    return int(os.environ["WORLD_SIZE"]) if launched_together() else 1


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
        with self.detecting_lost_process():
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
        with self.detecting_lost_process():
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
        with self.detecting_lost_process():
            dist.broadcast_object_list(answer, device=torch.device("cpu"))
        unpacked: Answer = _unpack(answer[0])
        return unpacked

    def share_buffers(self, network: nn.Module) -> None:
        """Give every process the first one's buffers: all judge with the batch-norm statistics that are saved."""
        if self.size == 1:
            return
        with self.detecting_lost_process():
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)

    @contextmanager
    def detecting_lost_process(self) -> Iterator[None]:
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

    def fabric(self, config: ResolvedConfig, loggers: list[Logger]) -> Fabric:
        """Lightning Fabric for this process: places the network, sets its precision, sums gradients over all."""
        # It would name the precision on standard error each time; carnet has said it.
        logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        torch.set_num_threads(config.threads)
        torch.backends.cudnn.deterministic = True
        compute_exactly()
        precision = _FABRIC_PRECISIONS[config.precision]
        if self.size == 1:
            return Fabric(accelerator=config.device, devices=1, precision=precision, loggers=loggers)
        fabric = Fabric(
            accelerator=config.device,
            devices=self.local_size,
            num_nodes=self.size // self.local_size,
            strategy=DDPStrategy(timeout=PATIENCE),
            precision=precision,
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


Job = TypeVar("Job")
Work = Callable[[Job, Processes, Progress, StopFlag], Answer]

_LOOPBACK = "127.0.0.1"
_HAS_LIBUV = sys.platform != "win32"
"""PyTorch asks for it by default, and is built without it for Windows."""
_GRACE_SECONDS = 10.0
"""For the others to notice by themselves that one has died."""


def launch(work: Work[Job, Answer], job: Job, *, size: int, device: str, progress: Progress) -> Answer:
    """Do one piece of work with `size` new processes, and return the first one's answer.

    Args:
        work: a function of a module, called in each process.
        job: what it is about; has to survive pickling.
        size: how many processes.
        device: cpu, or cuda for one GPU each.
        progress: shown what the first process says.

    Raises:
        CarnetError: what one of them raised.
        LostProcessError: if one died.
    """
    store = TCPStore(_LOOPBACK, 0, is_master=True, wait_for_workers=False, use_libuv=_HAS_LIBUV)
    context = get_context("spawn")
    said: Queue[Any] = context.Queue()
    stop_number = context.Value("i", 0)
    # As bytes, because tensors would arrive as memory that all of them share, and each needs weights of its own.
    arguments = (_Meeting(size, device, store.port, said, stop_number), work, pickle.dumps(job))
    with catch_stop_signals() as stop:
        processes = spawn(_work, args=arguments, nprocs=size, join=False)  # type: ignore[no-untyped-call]
        try:
            answer: Answer = _wait(processes, said, stop, stop_number, progress)
            return answer
        finally:
            for process in processes.processes:
                process.kill()


@dataclass(frozen=True)
class _Meeting:
    """What a new process has to know to meet the others."""

    size: int
    device: str
    port: int
    said: Queue[Any]
    stop_number: Any


def _wait(processes: ProcessContext, said: Queue[Any], stop: StopFlag, stop_number: Any, progress: Progress) -> Any:
    answers: list[Any] = []
    errors: list[CarnetError] = []
    ended = False
    while not ended:
        stop_number.value = stop.signal_number or 0
        try:
            ended = processes.join(timeout=0.1, grace_period=_GRACE_SECONDS)
        except ProcessException as error:
            ended = True
            errors.append(LostProcessError(_death(processes, error)))
        _relay(said, progress, answers, errors)
    if errors:
        # That another process has gone is what the survivors can tell; the one that failed knows more.
        raise min(errors, key=lambda error: isinstance(error, LostProcessError))
    return answers[0]


def _relay(said: Queue[Any], progress: Progress, answers: list[Any], errors: list[CarnetError]) -> None:
    while True:
        try:
            kind, content = said.get(timeout=0.01)
        except Empty:
            return
        match kind:
            case "say":
                progress.say(*content)
            case "bar":
                progress.bar(*content)
            case "answer":
                answers.append(content)
            case _:
                errors.append(content)


def _death(processes: ProcessContext, error: ProcessException) -> str:
    code = processes.processes[error.error_index].exitcode or 0
    return f"process {error.error_index + 1} of {len(processes.processes)} {how_it_ended(code)}"


class _Relay:
    """A progress whose words are shown by the process that started this one."""

    def __init__(self, said: Queue[Any]) -> None:
        self.said = said

    def say(self, text: str) -> None:
        self.said.put(("say", (text,)))

    def bar(self, what: str, done: int, total: int, note: str = "") -> None:
        self.said.put(("bar", (what, done, total, note)))


class _ParentsFlag(StopFlag):
    """Set by the process that started this one."""

    def __init__(self, number: Any) -> None:
        self.number = number

    @property
    def signal_number(self) -> int | None:
        return super().signal_number or self.number.value or None


def _work(rank: int, meeting: _Meeting, work: Work[Any, Any], job: bytes) -> None:
    # Ctrl-C reaches every process of a terminal; the one that keeps it decides.
    for number in STOP_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    os.environ |= {name: str(meeting.size) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    os.environ |= {name: str(rank) for name in ("RANK", "LOCAL_RANK")}
    try:
        store = TCPStore(_LOOPBACK, meeting.port, is_master=False, use_libuv=_HAS_LIBUV)
        with Processes.join(meeting.device, store) as processes:
            progress = _Relay(meeting.said) if processes.is_first else Silent()
            answer = work(pickle.loads(job), processes, progress, _ParentsFlag(meeting.stop_number))
        if processes.is_first:
            meeting.said.put(("answer", answer))
    except CarnetError as error:
        meeting.said.put(("error", error))
    meeting.said.close()
    meeting.said.join_thread()
    # Gloo's threads can abort a process whose Python shuts down; everything has been said.
    os._exit(0)
