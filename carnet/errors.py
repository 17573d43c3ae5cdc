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

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_TRAIN_PACKAGES = {
    "torch": "PyTorch",
    "torchvision": "torchvision",
    "safetensors": "safetensors",
    "lightning_fabric": "Lightning Fabric",
    "matplotlib": "matplotlib",
    "psutil": "psutil",
    "rich": "rich",
}
_NO_MEMORY = (
    *("allocate memory", "not enough memory", "out of memory", "bad_alloc", "bad allocation"),
    *("could not create a primitive", "can't start new thread", "failed to map segment", "paging file is too small"),
)
"""What PyTorch, its kernels, ONNX Runtime, Python and the loader of libraries say where memory is short."""
_COMMITMENT_LIMIT = 1455
"""What Windows says then."""
_EXPORT_PACKAGES = {"onnx": "onnx", "onnxscript": "onnxscript"}
_MAX_LISTED = 20
"""Of files that cannot be read."""
_EXPORTING = ("carnet export", "carnet compare", "carnet benchmark", "carnet.export_model")
"""What needs both: the extra `export` brings `train` as well."""


class CarnetError(Exception):
    """Base of every error this package raises on purpose. `str(error)` is one sentence that says what to do."""

    exit_code = 2

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors pass between the processes of a run, whatever their constructors take.
        return _rebuild, (type(self), str(self), vars(self))


def _rebuild(kind: type[CarnetError], message: str, attributes: dict[str, Any]) -> CarnetError:
    error = kind.__new__(kind, message)
    error.args = (message,)
    vars(error).update(attributes)
    return error


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
        # The first line shall still be seen where all the photos of a phone cannot be read.
        shown = errors[:_MAX_LISTED]
        listing = "".join(f"\n  {error}" for error in shown)
        more = f"\n  and {len(errors) - len(shown):,} more" if len(errors) > len(shown) else ""
        super().__init__(
            f"{len(errors)} of {num_images} images cannot be read; mend or remove them, "
            f"or go on without them with --skip-unreadable:{listing}{more}"
        )


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
        """The error a user should see for a missing module; None if no extra of ours would bring it."""
        module = (error.name or "").partition(".")[0]
        if module in _TRAIN_PACKAGES:
            return cls(what, _TRAIN_PACKAGES[module], "export" if what in _EXPORTING else "train")
        return cls(what, _EXPORT_PACKAGES[module], "export") if module in _EXPORT_PACKAGES else None


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
    """Whether an error, or one that caused it, says that memory is short, in the words of whoever raised it."""
    return _shortage(error) is not None


def _shortage(error: BaseException | None) -> BaseException | None:
    """The first of an error and its causes that says so."""
    while error is not None and not _says_shortage(error):
        error = error.__cause__
    return error


def _says_shortage(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM or getattr(error, "winerror", None) == _COMMITMENT_LIMIT
    return any(words in str(error).lower() for words in _NO_MEMORY)


@contextmanager
def explaining_lack_of_memory(what: str, way_out: str) -> Iterator[None]:
    """Say in one sentence that memory ran out.

    Args:
        what: took it.
        way_out: what to do.

    Raises:
        OutOfMemoryError: instead of the error of whoever found no memory.
    """
    try:
        yield
    except Exception as error:
        shortage = _shortage(error)
        if isinstance(error, CarnetError) or shortage is None:
            raise
        reason = next(iter(str(shortage).strip().splitlines()), "")
        raise OutOfMemoryError(f"not enough memory for {what}{reason and f' ({reason})'}; {way_out}") from error
