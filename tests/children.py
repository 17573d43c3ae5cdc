"""Processes that tests start, and end whatever happens: also when the test fails, and with all that they started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

PATIENCE = 600
"""Seconds after which a process hangs, on the slowest of machines."""


@contextmanager
def started(command: Sequence[object], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process in a group of its own, as a shell would make it; Ctrl-C for the group reaches all of it.

    Args:
        command: program and arguments.
        options: for `Popen`.
    """
    arguments = [str(argument) for argument in command]
    process = subprocess.Popen(arguments, text=True, start_new_session=True, **options)
    try:
        yield process
    finally:
        if os.name == "nt":
            process.kill()
        else:
            # Nobody may be left.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def finished(
    command: Sequence[object], *, check: bool = False, stdout: int | IO[str] = subprocess.PIPE, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Wait for a process to end by itself, and return what it said; with `check`, it must have succeeded."""
    with started(command, stdout=stdout, stderr=subprocess.PIPE, **options) as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert not check or process.returncode == 0, err
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait for a file that a process writes."""
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert process.poll() is None, f"it ended with {process.returncode} before it wrote {path}"
        assert time.monotonic() < deadline, f"it has not written {path}"
        time.sleep(0.05)
