"""Open what `carnet.data.hub` names with Hugging Face `datasets`, and say in one line what is wrong where it fails.

Which splits and columns of a data set hold the images and their labels, and what is in them.
"""

from __future__ import annotations

import io
import logging
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from carnet.data.hub import LABEL_MEMBERS, Source, check_whole
from carnet.data.samples import SPLIT_NAMES
from carnet.errors import CarnetError, DataError, MissingExtraError, is_out_of_memory
from carnet.files import MAX_IMAGE_BYTES
from carnet.text import counted, first_few

_UNREACHABLE = "ConnectionError|TransportError|Timeout|HfHubHTTPError"
_REASONS = (
    ("GatedRepo|is a gated", "is not open to everybody; ask for it at {page}, then `hf auth login`"),
    ("RevisionNotFound|Revision '", "has no revision {revision!r}; {page}/commits/main lists them"),
    (
        "RepositoryNotFound|DatasetNotFound",
        "is no data set of the Hugging Face hub, or a private one; find its name at https://huggingface.co/datasets, "
        "or `hf auth login`; a folder is hf:./FOLDER",
    ),
    (_UNREACHABLE, "cannot be read, for the Hugging Face hub does not answer; try again later ({text})"),
    ("scripts are no longer", "is a Python script, which `datasets` no longer runs; try {name}@refs/convert/parquet"),
    (r"[Aa]vailable(?: configs)?: \[(.*?)\]", "needs a configuration; name one of {found}, hf:NAME:CONFIGURATION"),
    ("EmptyDataset|DataFilesNotFound", "has no data files of a kind that `datasets` knows; name another"),
    ("TarError|EOFError|LZMAError|zlib.error", "has a damaged tar ({text}); copy or download it again"),
    ("JSONDecodeError", "has a damaged .json member ({text}); write its shards again"),
    (
        "WebDataset format|at least one table|Duplicate field",
        "has tars whose samples are not all of the same members, such as 1.jpg and 1.cls side by side ({text}); "
        "write them again, or unpack them and name the folder",
    ),
    (r"literal for int\(\)", "has a label that should be a number ({text}); names belong into .txt members, not .cls"),
    (
        "CastError|ArrowNotImplemented|No match for FieldRef",
        "has files with different columns ({text}); write them all with the same",
    ),
    ("BatchSize must be", "has a parquet file without rows; leave it out"),
    ("ArrowException", "has a damaged parquet file ({text}); copy or download it again"),
    ("", "cannot be read ({text}); mend it, or see whether `datasets` itself can load it"),
)
"""What to find in an error's kinds and text -> what to tell."""


class HubUnreachableError(DataError):
    """The hub does not answer."""


def pin(source: Source) -> Source:
    """The source with its present revision, so that all that follows reads the same bytes.

    Raises:
        DataError: no such data set or revision, not open to everybody, or `HubUnreachableError`.
    """
    if not source.on_hub or re.fullmatch(r"[0-9a-f]{40}", source.revision or ""):
        return source
    import_datasets()
    import huggingface_hub

    with explained(source):
        name = source.repository
        found = huggingface_hub.HfApi().dataset_info(name, revision=source.revision, timeout=20)
        return replace(source, revision=found.sha)


def open_source(source: Source, columns: Sequence[str] | None = None) -> tuple[str, dict[str, Any]]:
    """The source's format, and its splits as `datasets.IterableDataset` under their own names.

    Args:
        source: pinned.
        columns: only these are read; for the format "parquet".

    Raises:
        DataError: whatever is wrong with it.
    """
    datasets = import_datasets()
    options = {} if columns is None else {"columns": list(columns)}
    with explained(source):
        if source.loader in ("parquet", "webdataset"):
            by_split: dict[str, list[str]] = {}
            for split, path in source.files:
                by_split.setdefault(split, []).append(str(path.absolute()))
            # Said this way, a path may hold what `datasets` would take for a pattern.
            from datasets.data_files import DataFilesDict, DataFilesList

            lists = {split: DataFilesList(paths, [()] * len(paths)) for split, paths in by_split.items()}
            options["data_files"] = DataFilesDict(lists)
        builder = datasets.load_dataset_builder(source.loader, source.config, revision=source.revision, **options)
        if source.is_folder and builder.name == "imagefolder":
            taken = (path for paths in builder.config.data_files.values() for path in paths)
            # What is called otherwise, it leaves out as well, but only when it comes to it.
            check_whole(source, [path for path in taken if path.lower().endswith(tuple(builder.EXTENSIONS))])
        # It would fetch and decode images of which only the label is asked.
        if hasattr(builder.config, "decode_num_threads"):
            builder.config.decode_num_threads = 0
        return str(builder.name), dict(builder.as_streaming_dataset())


def import_datasets() -> Any:
    """The package, silent from here on: what it has to say comes as errors, and progress is shown by us.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        import datasets
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError as error:
        raise MissingExtraError("DATA of this form", "Hugging Face datasets", "datasets") from error
    datasets.utils.logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    disable_progress_bars()
    return datasets


@contextmanager
def explained(source: Source) -> Iterator[None]:
    """Turn what `datasets` and all it stands on raise into one line that names the data and a way out.

    Raises:
        DataError: that line.
    """
    try:
        yield
    except CarnetError:
        raise
    # Arrow, fsspec, httpx and tarfile each have errors of their own, and `datasets` lets most of them through.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        text = " ".join(str(error).split())[:300]
        kinds = " ".join(kind.__name__ for kind in type(error).__mro__)
        pattern, reason = next((p, reason) for p, reason in _REASONS if re.search(p, f"{kinds}: {text}"))
        found = re.search(pattern, f"{kinds}: {text}")
        name = source.repository
        raise (HubUnreachableError if pattern == _UNREACHABLE else DataError)(
            f"{source.data} "
            + reason.format(
                text=text or type(error).__name__,
                name=f"hf:{name}",
                page=f"https://huggingface.co/datasets/{name}",
                revision=source.revision,
                found=found[1] if found and found.re.groups else "",
            )
        ) from error


_IMAGE_COLUMNS = ("image", "img", "images", "jpg", "jpeg", "png", "webp", "picture", "photo", "pixel_values")
_IMAGE_KINDS = ("binary", "large_binary", "List", "LargeList", "Array2D", "Array3D")
_LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "fine_label")
"""Names of columns, in the order in which they are preferred."""


@dataclass(frozen=True)
class Columns:
    """Where in a row the image and its label stand."""

    image: str
    label: str
    member: str | None
    """Of a label that is a JSON document."""
    names: tuple[str, ...]
    """What the labels' numbers stand for; empty: themselves."""

    @classmethod
    def find(cls, table: Any, loader: str, source: Source) -> Columns:
        """By kind, and by name where the kind leaves a choice."""
        datasets = import_datasets()
        # CSV and JSON say what their columns are only as they are read.
        features = table.features or dict.fromkeys(next(iter(table), {}))
        images = [
            name
            for name, feature in features.items()
            if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature)
        ]
        plain = [name for name in _IMAGE_COLUMNS if _kind(features.get(name)) in _IMAGE_KINDS]
        image = _choose("image", images or plain[:1], _IMAGE_COLUMNS, features, source)
        known = (*_LABEL_COLUMNS, *(LABEL_MEMBERS if loader == "webdataset" else ()))
        named = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        plain = [name for name in known if name != image and _label_member(features.get(name)) is not None]
        label = _choose("label", named or plain[:1], known, features, source)
        return cls(image, label, _label_member(features[label]) or None, tuple(getattr(features[label], "names", ())))

    def text(self, value: Any) -> str | None:
        """What a label says; None where there is none."""
        if self.member is not None and value is not None:
            value = value[self.member]
        if value is None or value == -1 or (isinstance(value, float) and math.isnan(value)):
            return None
        if self.names:
            if not 0 <= value < len(self.names):
                raise ValueError(f"label {value} where there are {len(self.names)} classes")
            value = self.names[value]
        elif isinstance(value, float):
            value = f"{value:g}"
        # As `carnet.data.table` reads names.
        return unicodedata.normalize("NFC", str(value).strip()) or None


def _choose(what: str, found: list[str], known: Iterable[str], features: Mapping[str, Any], source: Source) -> str:
    chosen = source.chosen.get(what)
    if chosen in features:
        return str(chosen)
    candidates = found if len(found) == 1 else [name for name in known if name in found]
    if candidates and chosen is None:
        return candidates[0]
    columns = first_few([f"{name} ({_kind(feature)})" for name, feature in features.items()], 12)
    problem = f"no column {chosen}" if chosen else f"several {what} columns" if found else f"no {what} column"
    raise DataError(
        f"{source.data} has {problem}; say ?{what}=COLUMN after hf:NAME or hf:./FOLDER, or rename it {what}; "
        f"it has {columns}"
    )


def _kind(feature: Any) -> str:
    name = type(feature).__name__
    return str(feature.dtype) if name == "Value" else {"dict": "members", "NoneType": "unknown"}.get(name, name)


def _label_member(feature: Any) -> str | None:
    """The member of a JSON label that holds the class; empty for a plain label; None for what is none."""
    if isinstance(feature, dict):
        return next((name for name in (*_LABEL_COLUMNS, "cls") if _label_member(feature.get(name)) == ""), None)
    return "" if _kind(feature).startswith(("int", "uint", "string", "large_string", "bool", "float")) else None


def split_names(tables: Mapping[str, Any], source: Source) -> tuple[dict[str, str], tuple[str, ...]]:
    """Our splits -> the data set's, and what is said about the others."""
    names = {split: name for split, name in source.chosen.items() if split not in ("image", "label")}
    if not names and len(tables) == 1:
        return {"train": next(iter(tables))}, ()
    for name in tables if not names else ():
        split = SPLIT_NAMES.get(name.lower(), name)
        if split in names:
            raise DataError(f"{source.data} has both {names[split]} and {name}; choose one, hf:…?{split}={name}")
        names[split] = name
    names = {split: names[split] for split in ("train", "valid", "test") if split in names}
    others = [name for name in tables if name not in names.values()]
    if "train" not in names or not set(names.values()) <= set(tables):
        raise DataError(f"{source.data} has the splits {', '.join(tables)}; say which to train on, hf:…?train=SPLIT")
    return names, (f"{counted(len(others), 'split')} left out: {first_few(others)}",) if others else ()


def image_bytes(value: Any, source: Source, which: str) -> bytes | str:
    """What a row holds of an image: its bytes, or where `fetch` finds them.

    Raises:
        DataError: if there is neither.
    """
    held = (value.get("bytes") or value.get("path")) if isinstance(value, dict) else value
    if held and isinstance(held, bytes):
        return held
    if isinstance(held, list | np.ndarray) and len(held):
        return _png(np.asarray(held), f"{source.data}: {which}")
    # A data set of the hub shall not make us open files of this machine.
    if isinstance(held, str) and (held.split("::")[-1].startswith("hf://") or source.is_folder):
        return held
    what = f"only a path ({held})" if isinstance(held, str) else "no bytes"
    raise DataError(f"{source.data}: {which} has {what}; put the bytes of the image into the data, or drop it")


def fetch(path: str) -> bytes:
    """An image that lies in a file of its own, on the hub or in a folder that `datasets` reads."""
    from datasets.utils.file_utils import xopen

    with xopen(path, "rb") as file:
        # Of one that is larger, so much that whoever looks into it refuses it.
        return bytes(file.read(MAX_IMAGE_BYTES + 1))


def _png(array: Any, which: str) -> bytes:
    """An image that is held as numbers, (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), without loss."""
    small = array.dtype.kind in "ui" and array.min() >= 0 and array.max() <= 255
    if not small or array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,), (4,)):
        raise DataError(
            f"{which} is an array of {array.dtype} {array.shape}; needed are 0 to 255 in (height, width, 3)"
        )
    pixels = array.astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if array.shape[2:] == (1,) else pixels).save(content, "PNG")
    return content.getvalue()
