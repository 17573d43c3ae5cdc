"""Cached folders are made once and completely; decoded images equal those of their files, which are read once."""

import errno
import hashlib
import os
import pickle
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calls import calls_of
from PIL import Image

from carnet.data.cache import cache_root, cached_folder
from carnet.data.decoded import CacheMode, Inspected, Target, inspect_and_cache
from carnet.data.description import describe
from carnet.data.find import find_images
from carnet.data.scan import inspect_images, scan_images
from carnet.data.synthetic import write_dataset
from carnet.errors import OutputError
from carnet.preprocess import Images, load_image
from carnet.spec import ModelSpec

HOUR = 3600
FREE = 10**12
DEFAULT = Target(48)


def fill(folder: Path) -> None:
    (folder / "inside").mkdir()
    (folder / "inside" / "a.txt").write_text("a")


def test_the_slower_of_two_processes_keeps_the_folder_of_the_faster_one() -> None:
    """It may be in use, so the same files must be there afterwards, not others of the same content."""

    def slowly(folder: Path) -> None:
        inodes.append((cached_folder("x", "key", fill) / "inside" / "a.txt").stat().st_ino)
        fill(folder)

    inodes: list[int] = []
    folder = cached_folder("x", "key", slowly)
    assert [(folder / "inside" / "a.txt").stat().st_ino] == inodes
    assert [path.name for path in folder.parent.iterdir()] == ["key"]


@pytest.mark.parametrize("manifest", [b"", b"{", b'{"num_files": 1}', b"\xff\xfe", None])
def test_a_damaged_manifest_makes_the_folder_anew(manifest: bytes | None) -> None:
    folder = cached_folder("x", "key", fill)
    (folder / "more.txt").write_text("left by a mistake")
    if manifest is None:
        (folder / ".carnet.json").unlink()
    else:
        (folder / ".carnet.json").write_bytes(manifest)
    assert cached_folder("x", "key", fill) == folder
    assert not (folder / "more.txt").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["key"]


def test_unfinished_folders_are_removed_after_a_day() -> None:
    folder = cached_folder("x", "key", fill)
    for name, age in ((".carnet-old", 30 * HOUR), (".carnet-new", 2 * HOUR), (".carnet-busy", 30 * HOUR)):
        scratch = folder.with_name(name)
        (scratch / "inside").mkdir(parents=True)
        for path in (scratch / "inside", scratch):
            os.utime(path, (time.time() - age,) * 2)
    # A file written into a folder inside changes only that folder.
    (folder.with_name(".carnet-busy") / "inside" / "a.txt").touch()
    cached_folder("x", "key", fill)
    assert sorted(path.name for path in folder.parent.iterdir()) == [".carnet-busy", ".carnet-new", "key"]


def test_a_cache_that_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(OutputError, match=re.escape(str(cache_root())) + ".*CARNET_CACHE"):
        cached_folder("x", "key", fill)


def test_a_tilde_in_the_environment_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("CARNET_CACHE", "~/carnet")
    assert cache_root() == tmp_path / "carnet"
    monkeypatch.setenv("CARNET_CACHE", "~nobody-of-that-name/carnet")
    assert cache_root() == Path.cwd() / "~nobody-of-that-name" / "carnet"


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A data set with planted faults: odd modes and names, duplicates; three files cannot be decoded."""
    root = tmp_path / "odd"
    write_dataset(root, train_per_class=4, valid_per_class=2, size=64, seed=1, dirty=True)
    return root


def keep(root: Path, mode: CacheMode = "auto", target: Target = DEFAULT) -> tuple[list[Path], Inspected]:
    paths = [sample.path for sample in find_images(root).samples]
    return paths, inspect_and_cache(paths, target, mode, free_memory=FREE)


@pytest.fixture
def decodings() -> Iterator[list[str]]:
    """Each call of Pillow to open an image."""
    with calls_of(Image.open) as calls:
        yield calls


@pytest.fixture
def opened() -> Iterator[Counter[str]]:
    """How often each file is opened, by any function, as Python's audit events report."""
    times: Counter[str] = Counter()

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and listening:
            times[str(arguments[0])] += 1

    listening = [True]
    # An audit hook cannot be removed.
    sys.addaudithook(hear)
    yield times
    listening.clear()


@pytest.mark.parametrize("mode", ["disk", "ram"])
def test_pixels_and_facts_are_those_of_the_files(mode: CacheMode, odd: Path) -> None:
    for target in (Target(48), Target(32, "pad", 1), Target(20, "stretch", 4)):
        paths, found = keep(odd, mode, target)
        assert {path: str(fact) for path, fact in found.facts.items()} == {
            path: str(fact) for path, fact in inspect_images(paths, 48).items()
        }
        spec = ModelSpec(
            model="x", classes=("a", "b"), image_size=target.image_size, resize=target.resize,
            in_channels=target.in_channels, mean=(0.5,) * target.in_channels, std=(0.5,) * target.in_channels,
        )  # fmt: skip
        assert found.decoded is not None
        good = [path for path in paths if found.facts[path].error is None]
        assert len(good) < len(paths)
        for path in good:
            assert np.array_equal(found.decoded.load(path), load_image(path, spec))


def test_a_file_is_decoded_once_and_a_changed_one_again(odd: Path, decodings: list[str]) -> None:
    paths, first = keep(odd)
    assert decodings
    _, again = keep(odd)
    num_decoded = len(decodings)
    assert again.facts == first.facts or {str(f) for f in again.facts.values()} == {
        str(f) for f in first.facts.values()
    }
    assert len(decodings) == num_decoded
    good = [path for path in paths if first.facts[path].error is None]
    shutil.copy(good[1], good[0])
    _, changed = keep(odd)
    # Its new content is known from the other file.
    assert len(decodings) == num_decoded
    assert changed.decoded is not None
    assert np.array_equal(changed.decoded.load(good[0]), changed.decoded.load(good[1]))


def test_another_size_has_a_cache_of_its_own(odd: Path, decodings: list[str]) -> None:
    keep(odd)
    before = len(decodings)
    keep(odd, target=Target(40))
    assert len(decodings) == 2 * before


def test_another_rule_has_a_cache_of_its_own(odd: Path, decodings: list[str]) -> None:
    keep(odd)
    before = len(decodings)
    keep(odd, target=Target(48, "pad"))
    assert len(decodings) == 2 * before


def test_folders_unused_for_a_month_are_removed(odd: Path) -> None:
    old, recent = (cached_folder("decoded", name, fill) for name in ("old", "recent"))
    for folder, days in ((old, 31), (recent, 29)):
        for path in (folder / "inside", folder):
            os.utime(path, (time.time() - days * 24 * HOUR,) * 2)
    keep(odd)
    assert (old.exists(), recent.exists()) == (False, True)


def test_other_folders_of_the_user_stay(odd: Path) -> None:
    """CARNET_CACHE may be a folder that is used for other things as well."""
    keep(odd, "disk")
    parent = cache_root() / "decoded"
    (used,) = parent.iterdir()
    long_ago = time.time() - 90 * 24 * HOUR
    for name in (".Trash-1000", ".snapshot-2024", "frames"):
        (parent / name / "inside").mkdir(parents=True)
        for path in (parent / name / "inside", parent / name):
            os.utime(path, (long_ago, long_ago))
    os.utime(used, (long_ago, long_ago))
    keep(odd, "disk")
    assert sorted(path.name for path in parent.iterdir()) == [".Trash-1000", ".snapshot-2024", used.name, "frames"]


def test_moved_images_need_no_decoding(odd: Path, decodings: list[str]) -> None:
    keep(odd)
    before = len(decodings)
    odd.rename(odd.with_name("moved"))
    _, found = keep(odd.with_name("moved"))
    assert len(decodings) == before
    errors = [fact.error for fact in found.facts.values() if fact.error is not None]
    assert all("moved" in str(error) for error in errors)


def test_the_cache_moves_to_memory_or_is_off_if_nothing_fits(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert keep(odd, "off")[1].decoded is None
    usage = shutil.disk_usage(odd)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    paths, found = keep(odd)
    assert found.decoded is not None
    assert not isinstance(found.decoded.pixels, np.memmap)
    for free, shared in ((0, False), (FREE, True)):
        found = inspect_and_cache(paths, Target(48), "auto", free_memory=free, shared=shared)
        assert found.decoded is None
        assert len(found.facts) == len(paths)


def test_another_process_maps_the_same_file(odd: Path) -> None:
    paths, found = keep(odd, "disk")
    content = pickle.dumps(found.decoded)
    assert len(content) < 20_000
    other = pickle.loads(content)
    path = next(path for path in paths if found.facts[path].error is None)
    assert found.decoded is not None
    assert np.array_equal(other.load(path), found.decoded.load(path))


def test_a_scan_gives_the_same_with_and_without_the_cache(odd: Path) -> None:
    _, found = keep(odd)
    data = find_images(odd)
    with_cache = scan_images(data, image_size=48, skip_unreadable=True, facts=found.facts)
    without = scan_images(data, image_size=48, skip_unreadable=True)
    assert describe(with_cache) == describe(without)
    assert with_cache.content_hash == without.content_hash


def test_cached_pixels_are_read_only(odd: Path) -> None:
    paths, found = keep(odd, "disk")
    assert found.decoded is not None
    pixels: Images = found.decoded.load(next(path for path in paths if found.facts[path].error is None))
    with pytest.raises(ValueError, match="read-only"):
        pixels[0] = 0


@pytest.mark.parametrize("mode", ["disk", "ram", "off"])
def test_a_file_is_read_and_hashed_once_when_the_cache_is_cold(
    mode: CacheMode, odd: Path, opened: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [sample.path for sample in find_images(odd).samples]
    hashed: list[int] = []
    original = hashlib.sha256

    def counting(content: bytes = b"") -> Any:
        hashed.append(len(content))
        return original(content)

    monkeypatch.setattr(hashlib, "sha256", counting)
    opened.clear()
    inspect_and_cache(paths, DEFAULT, mode, free_memory=FREE)
    assert [opened[str(path)] for path in paths] == [1] * len(paths)
    sizes = Counter(path.stat().st_size for path in paths)
    assert all(hashed.count(size) == number for size, number in sizes.items() if size > 100)


def test_images_of_another_cached_data_set_are_not_decoded_again(odd: Path, decodings: list[str]) -> None:
    keep(odd)
    paths = [sample.path for sample in find_images(odd).samples]
    good = next(path for path in paths if inspect_images([path], 48)[path].error is None)
    with Image.open(good) as image:
        image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(good.with_name("another.png"))
    before = len(decodings)
    paths, found = keep(odd)
    assert len(decodings) == before + 1
    assert found.decoded is not None
    spec = ModelSpec(model="x", classes=("a", "b"), image_size=48, mean=(0.5,) * 3, std=(0.5,) * 3)
    for path in paths:
        if found.facts[path].error is None:
            assert np.array_equal(found.decoded.load(path), load_image(path, spec))


@pytest.mark.parametrize("mode", ["disk", "ram"])
def test_a_file_that_changes_is_cached_as_it_was_read(mode: CacheMode, odd: Path) -> None:
    """Hash and pixels are those of the same bytes, even if the file changes in the meantime."""
    paths = [sample.path for sample in find_images(odd).samples]
    good = next(path for path, fact in inspect_images(paths, 48).items() if fact.error is None)
    before = good.read_bytes()

    def change(done: int, total: int) -> None:
        good.write_bytes(before + b"more")

    found = inspect_and_cache(paths, DEFAULT, mode, free_memory=FREE, progress=change)
    assert found.facts[good].sha256 in {hashlib.sha256(content).hexdigest() for content in (before, before + b"more")}
    assert found.facts[good].error is None


def test_no_image_can_be_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    for mode in ("disk", "ram"):
        found = inspect_and_cache([tmp_path / "a.jpg", tmp_path / "b.jpg"], DEFAULT, mode, free_memory=FREE)
        assert found.decoded is None
        assert all(fact.error is not None for fact in found.facts.values())


def test_a_full_disk_is_noticed_before_it_is_written(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "posix_fallocate"):
        pytest.skip("this system cannot reserve disk space")

    def full(descriptor: int, offset: int, length: int) -> None:
        assert length == 48 * 48 * 3 * len(paths)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    paths = find_images(odd).samples
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match=re.escape(str(cache_root())) + ".*CARNET_CACHE"):
        keep(odd, "disk")
