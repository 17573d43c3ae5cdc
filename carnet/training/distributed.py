"""The processes that train one run together: how they start, communicate and stop.

Lightning Fabric's strategy averages the gradients. This module does the rest: an error or a signal in one process stops
all of them before the same step, and a process that dies is noticed.

`--devices N` starts N new processes ("spawn", which works on every system). They meet the way torchrun's processes do.
The process that starts them does not train: it keeps the terminal, and ends with one clear message.
"""

from __future__ import annotations

import gc
import logging
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from queue import Empty
from types import FrameType
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.multiprocessing import get_context
from torch.multiprocessing.spawn import ProcessException, spawn

from carnet.config import Precision, ResolvedConfig
from carnet.errors import CarnetError, LostProcessError
from carnet.models.weights import compute_exactly
from carnet.text import Progress, Silent

Answer = TypeVar("Answer")
Job = TypeVar("Job")
Work = Callable[[Job, "Processes", Progress, "StopFlag"], Answer]

STOP_SIGNALS: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
if sys.platform == "win32":
    # SIGTERM never arrives on Windows; supervisors can send this signal instead.
    STOP_SIGNALS += (signal.SIGBREAK,)
_SAME_SIGNAL_SECONDS = 1.0
"""A second signal within this time is the same one: a launcher passes on what the terminal has already sent."""
TIMEOUT = timedelta(hours=2)
"""How long a process waits for another one that is alive, for example while the first one scans all images."""
_FABRIC_PRECISIONS: dict[Precision, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}
_LOOPBACK = "127.0.0.1"
_HAS_LIBUV = sys.platform != "win32"
"""PyTorch uses libuv by default, but is built without it for Windows."""
_GRACE_SECONDS = 10.0
"""Time for the other processes to notice by themselves that one has died."""


class StopRequestError(Exception):
    """A stop was requested. Internal: `fit` turns it into a checkpoint and a `StoppedError`."""

    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number
        super().__init__(signal_number)


class StopFlag:
    """Remembers a signal until a step ends; the death of the parent process counts as SIGTERM.

    Args:
        shared: the number of a signal that the parent process passes on (0: none), in shared memory; None: it passes
            none on.
    """

    def __init__(self, shared: Any = None) -> None:
        self.received: int | None = None
        self._shared = shared

    @property
    def request(self) -> StopRequestError | None:
        """The error to raise if a signal has arrived."""
        parent = parent_process()
        number = self.received or (self._shared and self._shared.value)
        if parent is not None and not parent.is_alive():
            number = signal.SIGTERM
        return StopRequestError(number) if number else None


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[dict[int, Any]]:
    """Handle the stop signals inside the block, and yield the previous handlers; do nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield {}
        return
    previous: dict[int, Any] = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield previous
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@contextmanager
def catch_stop_signals() -> Iterator[StopFlag]:
    """Remember Ctrl-C or SIGTERM, so that training stops after the step; a second signal stops it at once."""
    flag, first = StopFlag(), 0.0

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if flag.received is None:
            flag.received, first = number, time.monotonic()
            # `print` is not reentrant, and a handler may interrupt it.
            with suppress(OSError):
                os.write(2, b"\nstopping after this step; once more to stop at once\n")
        elif time.monotonic() - first > _SAME_SIGNAL_SECONDS:
            signal.signal(number, previous[number])
            signal.raise_signal(number)

    with _handling(remember) as previous:
        yield flag


@contextmanager
def leave_stop_signals_to(process: BaseProcess) -> Iterator[StopFlag]:
    """Let `process` alone react to Ctrl-C and SIGTERM inside the block; do nothing outside the main thread.

    A terminal sends Ctrl-C to both processes, so only SIGTERM is passed on. The flag remembers it, because a process
    that is still preparing dies of it without a message.
    """
    flag = StopFlag()

    def pass_on(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            flag.received = number
            process.terminate()

    with _handling(pass_on):
        yield flag


def how_it_ended(exit_code: int) -> str:
    """Return how a process ended, as the end of a sentence."""
    if exit_code < 0:
        return f"was killed ({signal.Signals(-exit_code).name})"
    return f"ended with exit code {exit_code}"


def num_launched() -> int:
    """Return the number of processes that torchrun or `launch` has started for this run, on all machines; or 1."""
    is_launched = {"WORLD_SIZE", "RANK", "LOCAL_RANK"} <= os.environ.keys()
    return int(os.environ["WORLD_SIZE"]) if is_launched else 1


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as this one sees them.

    Attributes:
        rank: of this process.
        size: number of processes.
        local_size: number of processes on this machine.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1

    @classmethod
    @contextmanager
    def join(cls, device: str, store: Any = None) -> Iterator[Processes]:
        """Connect this process with the others that were started with it, for as long as the block runs.

        Args:
            device: cpu, or cuda for one GPU per process.
            store: where they meet; None: at the address from torchrun.
        """
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # Gradients on GPUs go through NCCL; everything else through gloo, which notices a dead process at once.
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        try:
            yield cls(rank, size, int(os.environ.get("LOCAL_WORLD_SIZE", size)))
        finally:
            # DDP refers to the group in a cycle. Ending the group while Python shuts down would abort the process.
            gc.collect()
            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """True in the process that writes files and messages."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Return each value summed over all processes."""
        if self.size == 1:
            return list(values)
        with self.detecting_lost_process():
            total = torch.tensor(values, dtype=torch.float64)
            dist.all_reduce(total)
            return list(total.tolist())

    def agree(self, error: Exception | None) -> None:
        """Raise the first error that any process passes, in every process; return if none does."""

        def fail() -> None:
            if error is not None:
                raise error

        (num_errors,) = self.sum(error is not None)
        if num_errors:
            self.gather(fail)

    def gather(self, work: Callable[[], Answer]) -> list[Answer]:
        """Do some work in every process and return the answers of all, ordered by rank.

        Raises:
            Exception: the error of the process with the lowest rank that failed, in every process.
        """
        if self.size == 1:
            return [work()]
        outcomes: list[Any] = [None] * self.size
        with self.detecting_lost_process():
            dist.all_gather_object(outcomes, _outcome(work))
        if problem := next((outcome for outcome in outcomes if isinstance(outcome, Exception)), None):
            raise problem
        return outcomes

    def from_first(self, work: Callable[[], Answer]) -> Answer:
        """Do some work in the first process alone, and return its answer in every process.

        Raises:
            Exception: the error of the first process, in every process.
        """
        if self.size == 1:
            return work()
        outcome: list[Any] = [_outcome(work) if self.is_first else None]
        with self.detecting_lost_process():
            dist.broadcast_object_list(outcome, device=torch.device("cpu"))
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        answer: Answer = outcome[0]
        return answer

    def share_buffers(self, network: nn.Module) -> None:
        """Copy the first process's buffers to all: they evaluate with the batch-norm statistics that are saved."""
        if self.size == 1:
            return
        with self.detecting_lost_process():
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)

    @contextmanager
    def detecting_lost_process(self) -> Iterator[None]:
        """Raise a `LostProcessError` where the backend reports, in whatever words, that another process has died."""
        try:
            yield
        except RuntimeError as error:
            signs = ("gloo", "nccl", "connection", "peer")
            if self.size == 1 or not (isinstance(error, dist.DistError) or any(s in str(error).lower() for s in signs)):
                raise
            raise LostProcessError(f"another of the {self.size} processes of this run has ended") from error

    def fabric(self, config: ResolvedConfig) -> Fabric:
        """Set PyTorch up, and return what places the network, sets its precision and averages gradients."""
        # Fabric would write the precision to standard error each time.
        logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        torch.set_num_threads(config.threads)
        torch.backends.cudnn.deterministic = True
        compute_exactly()
        precision = _FABRIC_PRECISIONS[config.precision]
        if self.size == 1:
            return Fabric(accelerator=config.device, devices=1, precision=precision)
        fabric = Fabric(
            accelerator=config.device,
            devices=self.local_size,
            num_nodes=self.size // self.local_size,
            strategy=DDPStrategy(timeout=TIMEOUT),
            precision=precision,
            plugins=[TorchElasticEnvironment()],
        )
        fabric.launch()
        return fabric


def _outcome(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except (CarnetError, StopRequestError) as error:
        return error


def launch(work: Work[Job, Answer], job: Job, *, size: int, device: str, progress: Progress) -> Answer:
    """Call `work` in `size` new processes, and return the first one's answer.

    Args:
        work: a function of a module.
        job: its first argument, which must be picklable.
        size: number of processes.
        device: cpu, or cuda for one GPU per process.
        progress: receives the messages of the first process.

    Raises:
        CarnetError: the error of a process that failed.
        LostProcessError: if a process died.
    """
    store = TCPStore(_LOOPBACK, 0, is_master=True, wait_for_workers=False, use_libuv=_HAS_LIBUV)
    context = get_context("spawn")
    outbox: Queue[Any] = context.Queue()
    stop_number = context.Value("i", 0)
    # As bytes, because all processes would share the memory of tensors, and each needs its own weights.
    arguments = (_Meeting(size, device, store.port, outbox, stop_number), work, pickle.dumps(job))
    answers: list[Answer] = []
    errors: list[CarnetError] = []
    receive: dict[str, Callable[..., None]] = {"say": progress.say, "bar": progress.bar}
    receive |= {"answer": answers.append, "error": errors.append}
    ended = False
    with catch_stop_signals() as stop:
        group = spawn(_work, args=arguments, nprocs=size, join=False)  # type: ignore[no-untyped-call]
        try:
            while not ended:
                if (request := stop.request) is not None:
                    stop_number.value = request.signal_number
                try:
                    ended = group.join(timeout=0.1, grace_period=_GRACE_SECONDS)
                except ProcessException as error:
                    ended, number = True, error.error_index
                    fate = how_it_ended(group.processes[number].exitcode or 0)
                    errors.append(LostProcessError(f"process {number + 1} of {size} {fate}"))
                with suppress(Empty):
                    while True:
                        kind, content = outbox.get(timeout=0.01)
                        receive[kind](*content)
        finally:
            for process in group.processes:
                process.kill()
    if errors:
        # The survivors report only that a process is lost; the one that failed knows why.
        raise min(errors, key=lambda error: isinstance(error, LostProcessError))
    return answers[0]


class _Relay:
    """Passes progress on to the parent process, which shows it."""

    def __init__(self, outbox: Queue[Any]) -> None:
        self.outbox = outbox

    def say(self, text: str) -> None:
        self.outbox.put(("say", (text,)))

    def bar(self, what: str, done: int, total: int, note: str = "") -> None:
        self.outbox.put(("bar", (what, done, total, note)))


@dataclass(frozen=True)
class _Meeting:
    """What a new process needs to meet the others."""

    size: int
    device: str
    port: int
    outbox: Queue[Any]
    stop_number: Any


def _work(rank: int, meeting: _Meeting, work: Work[Any, Any], job: bytes) -> None:
    outbox = meeting.outbox
    # A terminal sends Ctrl-C to every process; the parent process decides.
    for number in set(STOP_SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    os.environ |= {name: str(meeting.size) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    os.environ |= {name: str(rank) for name in ("RANK", "LOCAL_RANK")}
    try:
        store = TCPStore(_LOOPBACK, meeting.port, is_master=False, use_libuv=_HAS_LIBUV)
        with Processes.join(meeting.device, store) as processes:
            progress = _Relay(outbox) if processes.is_first else Silent()
            answer = work(pickle.loads(job), processes, progress, StopFlag(meeting.stop_number))
        if processes.is_first:
            outbox.put(("answer", (answer,)))
    except CarnetError as error:
        outbox.put(("error", (error,)))
    outbox.close()
    outbox.join_thread()
    # Gloo's threads can abort a process while Python shuts down; everything has been sent.
    os._exit(0)
