"""Models on the Hugging Face Hub: `hf:OWNER/NAME`, or `hf:OWNER/NAME@REVISION`, as `carnet push` writes them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from carnet.errors import CarnetError, ConfigError, HubError, MissingExtraError, is_out_of_memory

PREFIX = "hf:"
_PAGE = "https://huggingface.co/"
_UNREACHED = "cannot be reached ({text}); try again later"
_REASONS = (
    # Of a file that could not be asked for, the library says that it is not in the cache.
    ("LocalEntryNotFound", _UNREACHED),
    ("GatedRepo", "is not open to everybody; ask for it at {page}, then `hf auth login`"),
    ("RevisionNotFound", "has no revision {revision!r}; {page}/commits/main lists them"),
    ("RepositoryNotFound|RepoNotFound", "is no model of the Hub, or a private one; look at {page}, or `hf auth login`"),
    ("EntryNotFound", "has no {file}; carnet push writes a model that has it"),
    ("LocalTokenNotFound|401|403", "may not be written; `hf auth login` with a token that may write"),
    ("", _UNREACHED),
)
"""Words in what the Hub's library raises -> what it means."""


def is_hub_model(source: Any) -> bool:
    """Return whether a model is named as one of the Hub."""
    return isinstance(source, str | Path) and str(source).startswith(PREFIX)


def fetch(source: Path | str, file: str) -> Path:
    """Return a file of a model of the Hub: from the Hub's cache on this machine, or downloaded.

    Args:
        source: hf:OWNER/NAME or hf:OWNER/NAME@REVISION.
        file: its name.

    Raises:
        ConfigError: if it is no such name.
        HubError: if there is no such model, revision or file, or the Hub does not answer.
        MissingExtraError: without the Hub's library.
    """
    name, revision = parse_name(source)
    library = quiet_library()
    with _explained(f"{PREFIX}{name}", file, revision):
        return Path(library.hf_hub_download(name, file, revision=revision))


def push(folder: Path, name: str, *, private: bool = False) -> str:
    """Upload a folder as a model of the Hub, which is made if there is none, and return its address.

    Raises:
        ConfigError, HubError, MissingExtraError: as `fetch`.
    """
    name, revision = parse_name(name if name.startswith(PREFIX) else PREFIX + name)
    if revision is not None:
        raise ConfigError(f"push takes OWNER/NAME, not a revision: {name}@{revision}")
    library = quiet_library()
    with _explained(f"{PREFIX}{name}", "", None):
        api = library.HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Written by carnet push")
        return f"{api.endpoint}/{name}"


def parse_name(source: Path | str) -> tuple[str, str | None]:
    """Return the name and the revision of hf:OWNER/NAME@REVISION; None: the newest.

    Raises:
        ConfigError: if it is no such name.
    """
    # A path on Windows has turned the slashes.
    text = str(source).replace("\\", "/").removeprefix(PREFIX)
    name, _, revision = text.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
        raise ConfigError(f"{PREFIX}{text} is no model of the Hub; write hf:OWNER/NAME or hf:OWNER/NAME@REVISION")
    return name, revision or None


def quiet_library() -> Any:
    """Import the Hub's library and silence it: its problems come as errors, and we show the progress.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        import huggingface_hub
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError as error:
        raise MissingExtraError("a model of the Hub", "huggingface_hub", "hub") from error
    # Its own function: the level of its logger is set anew when a part of it is imported.
    huggingface_hub.utils.logging.set_verbosity(logging.CRITICAL)
    disable_progress_bars()
    return huggingface_hub


@contextmanager
def _explained(name: str, file: str, revision: str | None) -> Iterator[None]:
    try:
        yield
    except CarnetError:
        raise
    # The library lets errors of its HTTP client through.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        _, reason, text = meaning_of(error, _REASONS)
        page = _PAGE + name.removeprefix(PREFIX)
        raise HubError(f"{name} {reason.format(page=page, revision=revision, file=file, text=text)}") from error


def meaning_of(error: Exception, reasons: Sequence[tuple[str, str]]) -> tuple[re.Match[str], str, str]:
    """Return the first reason whose words are in an error's classes or text, what was found, and the text.

    Args:
        error: what a library of the Hub raised.
        reasons: pairs of a pattern and a reason; the last pattern fits everything.
    """
    text = " ".join(str(error).split())[:300]
    told = f"{' '.join(kind.__name__ for kind in type(error).__mro__)}: {text}"
    found, reason = next((found, reason) for words, reason in reasons if (found := re.search(words, told)))
    return found, reason, text or type(error).__name__
