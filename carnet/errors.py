"""Every error a user can meet.

CarnetError                  base of them all; the command line prints its one sentence and ends with `exit_code`
├── DataError                a folder of images cannot be used as it is
│   ├── ImageError           one image file cannot be decoded
│   └── UnreadableImagesError  several could not; the message lists them
├── ConfigError              a field of the recipe is out of range, or two contradict each other
├── ModelError               an unknown model, an input too small for it, channels its groups do not divide
├── RunError                 a run folder is missing, incomplete, or does not fit what was asked of it
├── ModelFileError           an exported model is missing, damaged, none of ours, or newer than this version
│   └── GateError            an exported model does not do what the trained one does, and is not written
├── OutputError              a result cannot be written where it should go
├── MissingExtraError        a command needs a package of an extra that is not installed
├── NonFiniteLossError       training diverged
├── OutOfMemoryError         there is not enough memory for what was asked
├── LostProcessError         one of several processes that trained together has died
└── StoppedError             Ctrl-C or SIGTERM ended the work; a checkpoint holds what was done
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
    **{name: name for name in ("torchvision", "safetensors", "matplotlib", "psutil", "rich", "onnx", "onnxscript")},
}
"""Names of the packages, by module, that the extras `train` and `export` install."""
_NEEDS_EXPORT = ("carnet export", "carnet compare", "carnet benchmark", "carnet.export_model")
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
    """Base of every error this package raises on purpose. `str(error)` is one sentence that says what to do."""

    exit_code = 2

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors pass between the processes of a run, whatever their constructors take.
        return copyreg.__newobj__, (type(self), str(self)), vars(self)  # type: ignore[attr-defined]


class DataError(CarnetError, ValueError):
    """A folder of images cannot be used as it is."""


class ImageError(DataError):
    """One image cannot be decoded.

    Attributes:
        source: the file, or a word for where the bytes came from.
        reason: what is wrong with it, without the file's name.
    """

    def __init__(self, source: Path | str, reason: str) -> None:
        self.source = source
        self.reason = reason
        super().__init__(f"{source}: {reason}")


class UnreadableImagesError(DataError):
    """Some images cannot be decoded. `errors` holds one `ImageError` for each."""

    def __init__(self, errors: Sequence[ImageError], num_images: int) -> None:
        self.errors = tuple(errors)
        lines = [
            f"{len(errors)} of {num_images} images cannot be read; mend or remove them, "
            "or go on without them with --skip-unreadable:",
            *map(str, errors[:_MAX_LISTED]),
        ]
        if len(errors) > _MAX_LISTED:
            lines.append(f"and {len(errors) - _MAX_LISTED:,} more")
        super().__init__("\n  ".join(lines))


class ConfigError(CarnetError, ValueError):
    """A field of the recipe is out of range, or two contradict each other."""


class ModelError(CarnetError, ValueError):
    """A model cannot be built or used as asked."""


class RunError(CarnetError, ValueError):
    """A run folder is missing, incomplete, or does not fit what was asked of it."""


class ModelFileError(CarnetError, ValueError):
    """An exported model is missing, damaged, none of ours, or newer than this version."""


class GateError(ModelFileError):
    """An exported model does not do what the trained one does, and is not written."""

    exit_code = 1


class OutputError(CarnetError, OSError):
    """A result cannot be written where it should go."""


class MissingExtraError(CarnetError, ImportError):
    """A command needs a package that the base installation leaves out."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(f'{what} needs {package}: pip install "carnet[{extra}]"')

    @classmethod
    def explaining(cls, error: ModuleNotFoundError, what: str) -> MissingExtraError | None:
        """Return the error for a missing module, or None if no extra of ours would install it."""
        module = (error.name or "").partition(".")[0]
        if module not in _PACKAGES:
            return None
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
    """Training diverged: the loss of a step is infinite or not a number."""

    exit_code = 1


class OutOfMemoryError(CarnetError, MemoryError):
    """There is not enough memory for what was asked."""


class LostProcessError(CarnetError):
    """One of several processes that trained together has died; the others ended with it."""

    exit_code = 1


class StoppedError(CarnetError):
    """A signal ended the work at a step's end.

    Attributes:
        exit_code: 128 + the signal's number, as shells count it (130 for Ctrl-C, 143 for SIGTERM).
    """

    def __init__(self, message: str, signal_number: int) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(message)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or one that caused it, says that memory is short, in the words of whoever raised it."""
    return _shortage(error) is not None


def _shortage(error: BaseException | None) -> BaseException | None:
    """Return the first of an error and its causes that says that memory is short."""
    while error is not None:
        if isinstance(error, OSError):
            says_so = error.errno == errno.ENOMEM or getattr(error, "winerror", None) == _COMMITMENT_LIMIT
        else:
            says_so = isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY)
        if says_so:
            return error
        error = error.__cause__
    return None


@contextmanager
def explaining_lack_of_memory(what: str, way_out: str) -> Iterator[None]:
    """Turn any error that says that memory is short into one sentence: not enough memory for `what`; `way_out`.

    Raises:
        OutOfMemoryError: instead of the error of whoever found no memory.
    """
    try:
        yield
    except Exception as error:
        shortage = _shortage(error)
        if isinstance(error, CarnetError) or shortage is None:
            raise
        reason = str(shortage).strip().partition("\n")[0]
        raise OutOfMemoryError(f"not enough memory for {what}{reason and f' ({reason})'}; {way_out}") from error
