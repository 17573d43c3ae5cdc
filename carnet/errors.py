"""Every error that users can meet.

CarnetError
├── DataError: ImageError (ImageTooLargeError), UnreadableImagesError
├── ModelFileError: GateError, SelfTestError
├── ConfigError, ModelError, RunError, OutputError
├── HubError, MissingExtraError, NonFiniteLossError, OutOfMemoryError
└── LostProcessError, StoppedError
"""

from __future__ import annotations

import copyreg
import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PACKAGES = {
    **{"torch": "PyTorch", "lightning_fabric": "Lightning Fabric"},
    **{"starlette": "Starlette", "uvicorn": "uvicorn", "python_multipart": "python-multipart"},
    **{"prometheus_client": "prometheus-client"},
    **{name: name for name in ("torchvision", "safetensors", "matplotlib", "psutil", "rich", "onnx", "onnxscript")},
}
"""Names of the packages, by module, that the extras `train`, `export` and `serve` install."""
_SERVING = ("starlette", "uvicorn", "python_multipart", "prometheus_client")
"""Those that the extra `serve` installs."""
_NEEDS_EXPORT = (
    "carnet export",
    "carnet compare",
    "carnet benchmark",
    "carnet.export_model",
    "carnet.compare",
    "carnet.benchmark",
)
"""Commands and functions that need the extra `export`, which includes `train`."""
_NO_MEMORY = (
    *("allocate memory", "not enough memory", "out of memory", "bad_alloc", "bad allocation"),
    *("could not create a primitive", "can't start new thread", "failed to map segment", "paging file is too small"),
)
"""Words in the messages of PyTorch, its kernels, ONNX Runtime, Python and the library loader when memory is short."""
_COMMITMENT_LIMIT = 1455
"""The number of Windows's error when memory is short."""
_MAX_LISTED = 20
"""Number of unreadable images that a message lists."""


class CarnetError(Exception):
    """Base of every error this package raises on purpose.

    `str(error)` is one sentence that says what to do. The command line prints it and exits with `exit_code`.
    """

    exit_code = 2

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors pass between the processes of a run, whatever their constructors take.
        return copyreg.__newobj__, (type(self), str(self)), vars(self)  # type: ignore[attr-defined]


class DataError(CarnetError, ValueError):
    """The data cannot be used as it is."""


class ImageError(DataError):
    """One image cannot be decoded; `source` names the file or bytes, `reason` says what is wrong, without the name."""

    def __init__(self, source: Path | str, reason: str) -> None:
        self.source = source
        self.reason = reason
        super().__init__(f"{source}: {reason}")


class ImageTooLargeError(ImageError):
    """An image has more pixels or bytes than allowed."""


class UnreadableImagesError(DataError):
    """Some images cannot be decoded; `errors` has an `ImageError` for each."""

    def __init__(self, errors: Sequence[ImageError], num_images: int) -> None:
        self.errors = tuple(errors)
        lines = [
            f"{len(errors)} of {num_images} images cannot be read; repair or remove them, "
            "or skip them with --skip-unreadable:",
            *map(str, errors[:_MAX_LISTED]),
        ]
        if len(errors) > _MAX_LISTED:
            lines.append(f"and {len(errors) - _MAX_LISTED:,} more")
        super().__init__("\n  ".join(lines))


class ConfigError(CarnetError, ValueError):
    """A setting is out of range, or two contradict each other."""


class ModelError(CarnetError, ValueError):
    """A model is unknown, or cannot be built or used as requested."""


class RunError(CarnetError, ValueError):
    """A run folder is missing, incomplete, or does not fit the request."""


class ModelFileError(CarnetError, ValueError):
    """An exported model is missing, damaged, not one of ours, or newer than this version."""


class GateError(ModelFileError):
    """An exported model differs from the trained one, and is not written."""

    exit_code = 1


class SelfTestError(ModelFileError):
    """An exported model does not give the recorded answers for the test images inside it."""

    exit_code = 1


class OutputError(CarnetError, OSError):
    """A result cannot be written."""


class HubError(CarnetError, OSError):
    """A model of the Hugging Face Hub is not there, may not be read or written, or the Hub does not answer."""


class MissingExtraError(CarnetError, ImportError):
    """A command needs a package that is not installed: one of an extra of ours, or, with `install`, another."""

    def __init__(self, what: str, package: str, extra: str = "", *, install: str = "") -> None:
        super().__init__(f"{what} needs {package}: pip install " + (install or f'"carnet[{extra}]"'))

    @classmethod
    def explaining(cls, error: ModuleNotFoundError, what: str) -> MissingExtraError | None:
        """Return the error for a missing module, or None if no extra of ours would install it."""
        module = (error.name or "").partition(".")[0]
        if module not in _PACKAGES:
            return None
        if module in _SERVING:
            return cls(what, _PACKAGES[module], "serve")
        return cls(what, _PACKAGES[module], "export" if "onnx" in module or what in _NEEDS_EXPORT else "train")


@contextmanager
def explaining_missing_extra(what: str) -> Iterator[None]:
    """Turn the import of a package that is not installed into one line.

    Args:
        what: what needs the package, for the message.

    Raises:
        MissingExtraError: if an extra of ours would install it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError.explaining(error, what) or error from None


class NonFiniteLossError(CarnetError, ArithmeticError):
    """Training diverged: the loss of a step is infinite or NaN."""

    exit_code = 1


class OutOfMemoryError(CarnetError, MemoryError):
    """There is not enough memory."""


class LostProcessError(CarnetError):
    """One of several training processes has died, and the others have ended."""

    exit_code = 1


class StoppedError(CarnetError):
    """Ctrl-C or SIGTERM ended the work after a step; `exit_code` is 128 + the signal's number, as in shells."""

    def __init__(self, message: str, signal_number: int) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(message)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or one that caused it, means that memory is short, whatever library raised it."""
    return _shortage(error) is not None


def _shortage(error: BaseException | None) -> BaseException | None:
    """Return the first of an error and its causes that means that memory is short."""
    while error is not None:
        if isinstance(error, OSError):
            is_shortage = error.errno == errno.ENOMEM or getattr(error, "winerror", None) == _COMMITMENT_LIMIT
        else:
            is_shortage = isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY)
        if is_shortage:
            return error
        error = error.__cause__
    return None


@contextmanager
def explaining_lack_of_memory(what: str, way_out: str) -> Iterator[None]:
    """Turn an error that means that memory is short into: not enough memory for `what`; `way_out`.

    Raises:
        OutOfMemoryError: instead of that error.
    """
    try:
        yield
    except Exception as error:
        shortage = _shortage(error)
        if isinstance(error, CarnetError) or shortage is None:
            raise
        reason = str(shortage).strip().partition("\n")[0]
        raise OutOfMemoryError(f"not enough memory for {what}{reason and f' ({reason})'}; {way_out}") from error
