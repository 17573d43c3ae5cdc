"""The drawn data set is deterministic, only the shape tells a class, and planted.json lists what is wrong."""

import hashlib
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from carnet.data.synthetic import CLASSES, Faults, draw_image, write_dataset

SIZE = 32


def contents(root: Path) -> dict[str, bytes]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def numbered(split: str, name: str, count: int) -> set[str]:
    return {f"{split}/{name}/{name}_{index:04d}.jpg" for index in range(1, count + 1)}


def mode_of(path: Path) -> str:
    with Image.open(path) as image:
        return image.mode


@pytest.fixture(scope="module")
def dirty_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dirty") / "set"
    write_dataset(root, train_per_class=4, valid_per_class=2, size=SIZE, seed=7, dirty=True)
    return root


def listed_faults(root: Path) -> Faults:
    faults: Faults = json.loads((root / "planted.json").read_text(encoding="utf-8"))
    return faults


@pytest.fixture(scope="module")
def planted(dirty_root: Path) -> Faults:
    return listed_faults(dirty_root)


def test_ten_sorted_classes() -> None:
    assert len(set(CLASSES)) == 10
    assert list(CLASSES) == sorted(CLASSES)
    assert all(name.isalpha() and name.islower() for name in CLASSES)


@pytest.mark.parametrize("size", [16, 50])
def test_every_class_is_drawn_differently_at_any_size(size: int) -> None:
    drawn = [draw_image(label, np.random.default_rng(1), size) for label in range(10)]
    assert all(image.size == (size, size) and image.mode in {"RGB", "L"} for image in drawn)
    assert len({image.tobytes() for image in drawn}) == 10


@pytest.mark.parametrize(("label", "size"), [(-1, 32), (10, 32), (0, 15)])
def test_an_unknown_label_or_a_tiny_size_is_refused(label: int, size: int) -> None:
    with pytest.raises(ValueError, match=str(label if size == 32 else size)):
        draw_image(label, np.random.default_rng(0), size)


def test_structure_and_counts(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    root = tmp_path / "new" / "set"
    write_dataset(root, train_per_class=3, valid_per_class=2, size=SIZE, progress=lambda *call: calls.append(call))
    expected = set().union(*(numbered("train", name, 3) | numbered("valid", name, 2) for name in CLASSES))
    assert set(contents(root)) == expected
    assert calls == [(done, 50) for done in range(1, 51)]
    for path in root.rglob("*.jpg"):
        with Image.open(path) as image:
            assert (image.format, image.size) == ("JPEG", (SIZE, SIZE))
            image.load()
    assert list(root.parent.iterdir()) == [root]


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path: Path) -> None:
    for name, seed in (("one", 5), ("two", 5), ("other", 6)):
        write_dataset(tmp_path / name, train_per_class=2, valid_per_class=1, size=SIZE, seed=seed, dirty=True)
    one, two, other = (contents(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    pictures = {name for name in one if name.endswith(("_0001.jpg", "_0002.jpg")) and "train" in name}
    assert len(pictures) == 20
    assert all(one[name] != other[name] for name in pictures)
    assert one["planted.json"] != other["planted.json"]


def test_a_picture_does_not_depend_on_how_many_are_drawn(tmp_path: Path) -> None:
    write_dataset(tmp_path / "small", train_per_class=1, valid_per_class=1, size=SIZE)
    write_dataset(tmp_path / "large", train_per_class=2, valid_per_class=2, size=SIZE)
    small, large = contents(tmp_path / "small"), contents(tmp_path / "large")
    assert small.items() < large.items()
    assert len(set(large.values())) == len(large) == 40


def test_colour_does_not_tell_the_class() -> None:
    rng = np.random.default_rng(11)
    labels = np.tile(np.arange(10), 60)
    pictures = [draw_image(label, rng, SIZE).convert("RGB") for label in labels.tolist()]
    colours = np.array([np.asarray(picture).mean(axis=(0, 1)) for picture in pictures])
    train, test = slice(0, 300), slice(300, 600)
    centroids = np.stack([colours[train][labels[train] == label].mean(axis=0) for label in range(10)])
    nearest = np.linalg.norm(colours[test][:, None] - centroids, axis=-1).argmin(axis=1)
    assert (nearest == labels[test]).mean() < 0.25
    assert colours.std(axis=0).min() > 25  # colours vary, so the test above is no accident of grey pictures


def test_a_few_pictures_are_grey_files(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", train_per_class=25, valid_per_class=5, size=16)
    modes = Counter(mode_of(path) for path in (tmp_path / "set").rglob("*.jpg"))
    assert set(modes) == {"L", "RGB"}
    assert 0.03 < modes["L"] / modes.total() < 0.15


def test_planted_json_lists_what_is_added(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    root = tmp_path / "set"
    write_dataset(
        root, train_per_class=2, valid_per_class=1, size=SIZE, dirty=True, progress=lambda *call: calls.append(call)
    )
    listed = {kind: [fault["path"] for fault in group] for kind, group in listed_faults(root).items()}
    assert {kind: len(paths) for kind, paths in listed.items()} == {"unreadable": 3, "duplicates": 4, "mislabelled": 6}
    clean = set().union(*(numbered("train", name, 2) | numbered("valid", name, 1) for name in CLASSES))
    assert set(contents(root)) == {"planted.json", *clean, *(path for paths in listed.values() for path in paths)}
    assert calls[-1] == (43, 43)


def test_planted_names_are_ordinary_next_numbers(dirty_root: Path) -> None:
    for folder in [*(dirty_root / "train").iterdir(), *(dirty_root / "valid").iterdir()]:
        names = {path.relative_to(dirty_root).as_posix() for path in folder.iterdir()}
        assert names == numbered(folder.parent.name, folder.name, len(names))


def test_exactly_the_planted_files_are_unreadable(dirty_root: Path, planted: Faults) -> None:
    failed = set()
    for path in dirty_root.rglob("*.jpg"):
        try:
            with Image.open(path) as image:
                image.load()
        except (OSError, UnidentifiedImageError):
            failed.add(path.relative_to(dirty_root).as_posix())
    assert failed == {fault["path"] for fault in planted["unreadable"]}
    data = {fault["fault"]: (dirty_root / fault["path"]).read_bytes() for fault in planted["unreadable"]}
    assert data["truncated"].startswith(b"\xff\xd8")
    assert not data["truncated"].endswith(b"\xff\xd9")
    assert data["empty"] == b""
    assert data["text"].decode("ascii").strip().replace(" ", "").rstrip(".").isalpha()


def test_exactly_the_planted_files_are_duplicates(dirty_root: Path, planted: Faults) -> None:
    groups: dict[str, set[str]] = {}
    for path in dirty_root.rglob("*.jpg"):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        groups.setdefault(digest, set()).add(path.relative_to(dirty_root).as_posix())
    repeated = sorted(sorted(group) for group in groups.values() if len(group) > 1)
    assert repeated == sorted(sorted((fault["path"], fault["copy_of"])) for fault in planted["duplicates"])

    kinds = Counter(fault["kind"] for fault in planted["duplicates"])
    assert kinds == {"within_class": 2, "across_splits": 1, "across_classes": 1}
    for fault in planted["duplicates"]:
        (split, name, _), (old_split, old_name, _) = fault["path"].split("/"), fault["copy_of"].split("/")
        assert old_split == "train"
        assert (split == "valid") == (fault["kind"] == "across_splits")
        assert (name != old_name) == (fault["kind"] == "across_classes")
    assert len({f["path"].split("/")[1] for f in planted["duplicates"] if f["kind"] == "within_class"}) == 1


def test_mislabelled_files_are_pictures_of_other_classes(dirty_root: Path, planted: Faults) -> None:
    for fault in planted["mislabelled"]:
        drawn_as = CLASSES.index(fault["drawn_as"])
        # As every picture, a function of seed, stream (2: planted), class and number.
        rng = np.random.default_rng(np.random.SeedSequence((7, 2, drawn_as, 2)))
        content = io.BytesIO()
        draw_image(drawn_as, rng, SIZE).save(content, "JPEG", quality=90)
        assert (dirty_root / fault["path"]).read_bytes() == content.getvalue()
        assert fault["path"].startswith(f"train/{fault['filed_as']}/")
        assert fault["filed_as"] != fault["drawn_as"]


def test_dirty_leaves_the_clean_pictures_as_they_are(dirty_root: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "clean", train_per_class=4, valid_per_class=2, size=SIZE, seed=7)
    assert contents(tmp_path / "clean").items() < contents(dirty_root).items()


def test_a_folder_with_content_is_refused_and_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    (root / "notes.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match="mine"):
        write_dataset(root, train_per_class=1, valid_per_class=1, size=16)
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        write_dataset(root / "notes.txt", train_per_class=1, valid_per_class=1, size=16)
    assert contents(tmp_path) == {"mine/notes.txt": b"keep me"}


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    root = tmp_path / "empty"
    root.mkdir()
    write_dataset(root, train_per_class=1, valid_per_class=1, size=16)
    assert len(contents(root)) == 20
    assert list(tmp_path.iterdir()) == [root]


@pytest.mark.parametrize("exists", [False, True])
def test_nothing_is_left_when_drawing_ends_midway(tmp_path: Path, exists: bool) -> None:
    root = tmp_path / "set"
    if exists:
        root.mkdir()
    before = list(tmp_path.rglob("*"))
    seen: list[Path] = []

    def interrupt(done: int, total: int) -> None:
        if done == 5:
            seen.extend(tmp_path.rglob("*.jpg"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(root, train_per_class=1, valid_per_class=1, size=16, progress=interrupt)
    assert len(seen) == 5
    assert not any(root in path.parents for path in seen)
    assert list(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("train", "valid", "dirty"), [(0, 1, False), (1, 0, False), (1, 1, True)])
def test_too_few_pictures_are_refused(tmp_path: Path, train: int, valid: int, dirty: bool) -> None:
    with pytest.raises(ValueError, match=f"{train} train, {valid} valid"):
        write_dataset(tmp_path / "set", train_per_class=train, valid_per_class=valid, size=16, dirty=dirty)
    assert list(tmp_path.iterdir()) == []
