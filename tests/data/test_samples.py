"""Labelled images: how some are held out, and how a list leaves some out."""

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packing import tree

from carnet.data.samples import (
    LabeledImages,
    Sample,
    describe_unmatched,
    expanded,
    hold_out,
    identity,
    named_images,
    read_ignore_file,
    short_name,
)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("photos.tar.gz", "photos"),
        ("photos.TGZ", "photos"),
        ("my photos.zip", "my photos"),
        ("photos-1.5.tar.xz", "photos-1.5"),
        ("labels.csv", "labels"),
        (".csv", ".csv"),
    ],
)
def test_short_name_of_files(source: str, name: str, tmp_path: Path) -> None:
    assert short_name(tmp_path / source) == name


def test_short_name_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos.2024").mkdir()
    monkeypatch.chdir(tmp_path / "photos.2024")
    assert short_name(Path()) == short_name(Path("../photos.2024")) == "photos.2024"


def test_names_below_the_root_and_elsewhere(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    samples = (Sample(root / "cat" / "1.jpg", 0), Sample(tmp_path / "dog.jpg", 1))
    data = LabeledImages(root, ("cat", "dog"), {"all": samples}, source=root, left_out={"all": (root / "x.jpg",)})
    assert [data.relative(sample) for sample in samples] == ["cat/1.jpg", (tmp_path / "dog.jpg").as_posix()]
    assert (data.ignored, data.name) == (("x.jpg",), "photos")


def test_a_location_names_the_data_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for source, location in (
        ("photos", str(tmp_path / "photos")),
        ("~/photos", str(tmp_path / "home" / "photos")),
        ("hf:./photos?label=kind", f"hf:{tmp_path / 'photos'}?label=kind"),
        ("hf:~/photos", f"hf:{tmp_path / 'home' / 'photos'}"),
        ("hf:/data/photos", "hf:/data/photos"),
        ("hf:owner/photos:small@v2", "hf:owner/photos:small@v2"),
        ("hf://datasets/owner/photos", "hf:owner/photos"),
    ):
        assert LabeledImages(tmp_path, (), {}, source=expanded(source)).location == location


def numbered(contents: list[tuple[int, int]]) -> tuple[list[Sample], dict[Path, str]]:
    """(label, content number) pairs -> samples and digests."""
    samples = [Sample(Path(f"{i}.jpg"), label) for i, (label, _) in enumerate(contents)]
    return samples, {s.path: f"content {c}" for s, (_, c) in zip(samples, contents, strict=True)}


@given(
    contents=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60)), max_size=80),
    fraction=st.floats(0.05, 0.6),
    seed=st.integers(0, 5),
)
def test_equal_files_stay_on_one_side_and_nothing_is_lost(
    contents: list[tuple[int, int]], fraction: float, seed: int
) -> None:
    samples, digests = numbered(contents)
    train, valid = hold_out(samples, digests, fraction=fraction, seed=seed)
    assert sorted(train + valid, key=lambda s: s.path) == sorted(samples, key=lambda s: s.path)
    assert not {digests[s.path] for s in train} & {digests[s.path] for s in valid}
    for label in range(4):
        size = sum(s.label == label for s in samples)
        held = sum(s.label == label for s in valid)
        # A class that consists of larger groups gives its smallest one.
        assert held <= max(1, round(fraction * size), size // 2)
        assert size == 0 or held < size


@given(
    sizes=st.lists(st.integers(2, 40), min_size=2, max_size=5), fraction=st.floats(0.05, 0.6), seed=st.integers(0, 9)
)
def test_stratified(sizes: list[int], fraction: float, seed: int) -> None:
    contents = [(label, 1000 * label + i) for label, size in enumerate(sizes) for i in range(size)]
    samples, digests = numbered(contents)
    _, valid = hold_out(samples, digests, fraction=fraction, seed=seed)
    for label, size in enumerate(sizes):
        assert sum(s.label == label for s in valid) == max(1, round(fraction * size))


def test_follows_from_seed_and_content_alone() -> None:
    samples, digests = numbered([(i % 3, i) for i in range(60)])
    train, valid = hold_out(samples, digests, fraction=0.2, seed=1)
    assert hold_out(samples, digests, fraction=0.2, seed=1) == (train, valid)
    assert hold_out(samples, digests, fraction=0.2, seed=2)[1] != valid
    renamed = [Sample(Path("x") / s.path, s.label) for s in reversed(samples)]
    moved = hold_out(renamed, {Path("x") / p: d for p, d in digests.items()}, fraction=0.2, seed=1)[1]
    assert {s.path.name for s in moved} == {s.path.name for s in valid}


def test_a_class_is_never_held_out_completely() -> None:
    samples, digests = numbered([(0, 1), (0, 2), (1, 3), (1, 4), (1, 5), (1, 6)])
    train, valid = hold_out(samples, digests, fraction=0.9, seed=0)
    assert [s.label for s in train] == [0, 1]
    assert [s.label for s in valid] == [0, 1, 1, 1]


def test_single_image_is_kept_for_training() -> None:
    samples, digests = numbered([(0, 1), (1, 2), (1, 3)])
    train, valid = hold_out(samples, digests, fraction=0.5, seed=0)
    assert [s.label for s in train] == [0, 1]
    assert [s.label for s in valid] == [1]


def test_empty_lines_and_comments_of_an_ignore_list(tmp_path: Path) -> None:
    path = tmp_path / "ignore.txt"
    path.write_bytes("\ufeff# blurred\r\n\r\n a b.jpg \r\n./#1.jpg\r\nx\u2028y.jpg".encode())
    assert read_ignore_file(path) == ("a b.jpg", "./#1.jpg", "x\u2028y.jpg")


def test_the_datas_folder_comes_before_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "a/1.jpg", "photos/a/1.jpg", "photos/b/1.jpg")
    monkeypatch.chdir(tmp_path)
    images = [Path("photos/a/1.jpg"), Path("a/1.jpg"), Path("photos/b/1.jpg")]
    assert named_images(images, ["a/1.jpg"], [Path("photos")]) == ({images[0]}, [])
    assert named_images(images, ["a/1.jpg"], []) == ({images[1]}, [])
    assert named_images(images, ["photos/b/1.jpg"], [tmp_path / "photos"]) == ({images[2]}, [])
    assert named_images(images, [str(tmp_path / "photos/b/1.jpg")], []) == ({images[2]}, [])


def test_accents_encoded_in_two_ways(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD"))
    assert named_images([tmp_path / decomposed], [composed], [tmp_path])[0] == {tmp_path / decomposed}


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_the_data_may_be_given_as_a_link(tmp_path: Path) -> None:
    tree(tmp_path / "real", "a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    line = str(tmp_path / "real" / "a.jpg")
    assert named_images([tmp_path / "link/a.jpg"], [line], [tmp_path / "link"])[0] == {tmp_path / "link/a.jpg"}


def test_lines_without_images_are_counted() -> None:
    _, unmatched = named_images([Path("a.jpg")], [f"{number}.jpg" for number in range(9)], [])
    assert len(unmatched) == 9
    assert all(text in describe_unmatched(unmatched) for text in ("9 lines", "'0.jpg'", "'4.jpg'", "4 more"))


def test_one_file_is_known_by_any_way_to_write_it(tmp_path: Path) -> None:
    class OnNetworkDrive(type(tmp_path)):  # type: ignore[misc]
        """A file of a drive that gives all of them the number 0."""

        def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
            return os.stat_result((0,) * 10)

    (tmp_path / "a").mkdir()
    for kind in (Path, OnNetworkDrive):
        assert identity(kind(tmp_path / "a")) == identity(kind(tmp_path / "a" / ".." / "a"))
        assert identity(kind(tmp_path / "a")) != identity(kind(tmp_path))
        assert identity(kind(tmp_path / "gone")) == identity(kind(tmp_path / "gone"))
        assert identity(kind("\0")) == identity(kind("\0"))
