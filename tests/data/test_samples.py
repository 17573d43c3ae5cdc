from pathlib import Path

import pytest

from carnet.data.samples import LabeledImages, Sample, expanded, short_name


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
