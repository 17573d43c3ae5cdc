"""The processes that train one run together: what they tell each other, how they are started, and how they stop.

Lightning Fabric's strategy sums the gradients. The rest is here: which share of the images is whose, who writes, and
that an error or a signal in one process ends all of them in the same place instead of leaving the others waiting.

`--devices N` starts N new processes on this machine ("spawn" works on every system), which meet the way torchrun's do,
so that training knows one way only. The process that starts them keeps the terminal, and ends with one clear message.
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
    # What else supervisors can send there, where SIGTERM never arrives.
    STOP_SIGNALS += (signal.SIGBREAK,)
_ONE_WISH_SECONDS = 1.0
"""Signals that come closer together are one: a launcher passes on what the terminal has sent already."""
PATIENCE = timedelta(hours=2)
"""How long one process waits for another that is alive, for example while the first looks at all images."""
_FABRIC_PRECISIONS: dict[Precision, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}
_LOOPBACK = "127.0.0.1"
_HAS_LIBUV = sys.platform != "win32"
"""PyTorch asks for it by default, and is built without it for Windows."""
_GRACE_SECONDS = 10.0
"""For the others to notice by themselves that one has died."""


class StopRequestError(Exception):
    """Someone asked for the end. Internal: the trainer turns it into a checkpoint and a `StoppedError`."""

    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number
        super().__init__(signal_number)


class StopFlag:
    """Remembers a signal until it is convenient; the death of the process that started this one counts as SIGTERM.

    Args:
        shared: a number that the process which started this one sets to pass a signal on; None: it passes none on.
    """

    def __init__(self, shared: Any = None) -> None:
        self.received: int | None = None
        self._shared = shared

    @property
    def request(self) -> StopRequestError | None:
        """What to raise, if a signal has come."""
        parent = parent_process()
        number = self.received or (self._shared and self._shared.value)
        if parent is not None and not parent.is_alive():
            number = signal.SIGTERM
        return StopRequestError(number) if number else None

    def check(self) -> None:
        """Raise `StopRequestError` if a signal has come."""
        if (request := self.request) is not None:
            raise request


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[dict[int, Any]]:
    """Call `handler` on SIGINT and SIGTERM; gives the handlers before. Outside the main thread they stay."""
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
    """Remember Ctrl-C or SIGTERM, so that training ends after the step; a second one ends it at once."""
    flag, first = StopFlag(), 0.0

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if flag.received is None:
            flag.received, first = number, time.monotonic()
            # A handler may interrupt a print, so it must not print itself.
            with suppress(OSError):
                os.write(2, b"\nstopping after this step; once more to stop at once\n")
        elif time.monotonic() - first > _ONE_WISH_SECONDS:
            signal.signal(number, previous[number])
            signal.raise_signal(number)

    with _handling(remember) as previous:
        yield flag


@contextmanager
def leave_stop_signals_to(process: BaseProcess) -> Iterator[StopFlag]:
    """While the block runs, `process` alone heeds Ctrl-C and SIGTERM; outside the main thread signals stay as they are.

    A terminal sends Ctrl-C to both, so that only SIGTERM has to be passed on. The flag remembers that it was: a process
    that is still preparing dies of it and tells nothing.
    """
    flag = StopFlag()

    def pass_on(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            flag.received = number
            process.terminate()

    with _handling(pass_on):
        yield flag


def how_it_ended(exit_code: int) -> str:
    """What became of a process, for the end of a sentence."""
    if exit_code < 0:
        return f"was killed ({signal.Signals(-exit_code).name})"
    return f"ended with exit code {exit_code}"


def num_launched() -> int:
    """How many processes torchrun, or `launch`, has started for one run, here and elsewhere; 1: this one is alone."""
    is_one_of_several = {"WORLD_SIZE", "RANK", "LOCAL_RANK"} <= os.environ.keys()
    return int(os.environ["WORLD_SIZE"]) if is_one_of_several else 1


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

        def fail() -> None:
            if error is not None:
                raise error

        (num_errors,) = self.sum(error is not None)
        if num_errors:
            self.gather(fail)

    def gather(self, work: Callable[[], Answer]) -> list[Answer]:
        """Do some work in every process and give each of them all answers, in the order of ranks.

        Raises:
            Exception: what the first process to fail has raised, in every process.
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
        """Do some work in the first process alone and give every process its answer.

        Raises:
            Exception: what it raised, in every process.
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

    def fabric(self, config: ResolvedConfig) -> Fabric:
        """Lightning Fabric for this process: places the network, sets its precision, sums gradients over all."""
        # It would name the precision on standard error each time; carnet has said it.
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
            strategy=DDPStrategy(timeout=PATIENCE),
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
    answers: list[Answer] = []
    errors: list[CarnetError] = []
    hear: dict[str, Callable[..., None]] = {
        "say": progress.say,
        "bar": progress.bar,
        "answer": answers.append,
        "error": errors.append,
    }
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
                        kind, content = said.get(timeout=0.01)
                        hear[kind](*content)
        finally:
            for process in group.processes:
                process.kill()
    if errors:
        # That another process has gone is what the survivors can tell; the one that failed knows more.
        raise min(errors, key=lambda error: isinstance(error, LostProcessError))
    return answers[0]


class _Relay:
    """A progress whose words are shown by the process that started this one."""

    def __init__(self, said: Queue[Any]) -> None:
        self.said = said

    def say(self, text: str) -> None:
        self.said.put(("say", (text,)))

    def bar(self, what: str, done: int, total: int, note: str = "") -> None:
        self.said.put(("bar", (what, done, total, note)))


@dataclass(frozen=True)
class _Meeting:
    """What a new process has to know to meet the others."""

    size: int
    device: str
    port: int
    said: Queue[Any]
    stop_number: Any


def _work(rank: int, meeting: _Meeting, work: Work[Any, Any], job: bytes) -> None:
    said = meeting.said
    # Ctrl-C reaches every process of a terminal; the one that keeps it decides.
    for number in set(STOP_SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    os.environ |= {name: str(meeting.size) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    os.environ |= {name: str(rank) for name in ("RANK", "LOCAL_RANK")}
    try:
        store = TCPStore(_LOOPBACK, meeting.port, is_master=False, use_libuv=_HAS_LIBUV)
        with Processes.join(meeting.device, store) as processes:
            progress = _Relay(said) if processes.is_first else Silent()
            answer = work(pickle.loads(job), processes, progress, StopFlag(meeting.stop_number))
        if processes.is_first:
            said.put(("answer", (answer,)))
    except CarnetError as error:
        said.put(("error", (error,)))
    said.close()
    said.join_thread()
    # Gloo's threads can abort a process whose Python shuts down; everything has been said.
    os._exit(0)
