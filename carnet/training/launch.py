"""`--devices N`: start N processes on this machine, pass on what the first one says, and end all if one dies.

They are started afresh ("spawn"), which works on every system, and meet the way torchrun's do, so that training knows
one way only. The process that starts them stays outside: it keeps the terminal, and ends with one clear message.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.queues import Queue
from queue import Empty
from typing import Any, TypeVar

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.multiprocessing import get_context
from torch.multiprocessing.spawn import ProcessContext, ProcessException, spawn

from carnet.errors import CarnetError, LostProcessError
from carnet.progress import Progress, Silent
from carnet.training.processes import Processes
from carnet.training.stop import STOP_SIGNALS, StopFlag, catch_stop_signals, how_it_ended

Job = TypeVar("Job")
Answer = TypeVar("Answer")
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
