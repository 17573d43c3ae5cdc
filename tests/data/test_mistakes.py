"""What people do with their data, and the outcome: it works, perhaps with a warning, or one line says what to do.

To add a form, add its rows and name them in FORMS. A row has a name, what the user did, how the data is made, and the
outcome. The rows of data sets are in a file of their own, test_hub.py.
"""

from __future__ import annotations

import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from packing import (
    BOMB_BYTES,
    CATS_AND_DOGS,
    IMAGE,
    Make,
    a_file,
    a_folder,
    a_folder_with_a_table,
    a_list,
    a_table,
    a_tar,
    a_zip,
    a_zip_that_names,
    add_link,
    cut,
    encrypt,
    images,
    link,
    write_zip,
)

from carnet.data.find import find_images
from carnet.data.samples import read_ignore_file
from carnet.errors import DataError


@dataclass(frozen=True)
class Works:
    """The images are found, and the warnings name all of `noted`; without it, there are none."""

    num_images: int = 3
    classes: tuple[str, ...] = ("cat", "dog")
    noted: tuple[str, ...] = ()
    num_hidden: int = 0


class Refused:
    """A DataError of one line that names all of these."""

    def __init__(self, *named: str) -> None:
        self.named = named


Row = tuple[str, str, Make, Works | Refused]


def stuffed(path: Path) -> None:
    write_zip(path, images(*CATS_AND_DOGS) | {"cat/3.jpg": bytes(BOMB_BYTES)})


def doubled(path: Path) -> None:
    path.write_bytes(2 * path.read_bytes())


def nested(path: Path) -> None:
    write_zip(path, {"photos.zip": path.read_bytes(), "readme.txt": b"text"})


def named_by_macos(path: Path) -> None:
    """Names in UTF-8 without the mark that says so."""
    path.write_bytes(path.read_bytes().replace(b"caf??", "café".encode()))


GOOD = CATS_AND_DOGS
IN_A_FOLDER = tuple(f"photos/{name}" for name in GOOD)
ALL = ("all/1.jpg", "all/2.jpg")
HEAD = "filepath,label"
ROWS = ("cat/1.jpg,cat", "cat/2.jpg,cat", "dog/1.jpg,dog")
SPLIT_HEAD = "filepath,label,split"
WINDOWS = ["C:\\Ann\\" + row.replace("/", "\\") for row in ROWS]

# One row, one line or two.
# fmt: off
FOLDERS: list[Row] = [
    ("one-top-folder", "unpacked into one folder more", a_folder(*(f"a/b/{name}" for name in GOOD)),
        Works(noted=("a/b",))),
    ("loose", "no class folders", a_folder("1.jpg", "2.jpg"), Refused("photos", "2 images")),
    ("one-class", "one class only", a_folder("cat/1.jpg"), Refused("photos", "cat")),
    ("misspelt", "name misspelt", a_folder(*GOOD, data="photo"), Refused("photo", "photos")),
    ("no-train", "valid and test only", a_folder("valid/a/1.jpg", "test/b/1.jpg"),
        Refused("photos", "train", "valid", "test")),
    ("both", "val beside valid", a_folder("val/a/1.jpg", "valid/a/1.jpg"), Refused("val", "valid", "--layout classes")),
    ("capitals", "a class of valid in other capitals",
        a_folder("train/cat/1.jpg", "train/dog/1.jpg", "valid/Cat/1.jpg"), Refused("valid", "'Cat'", "'cat'")),
    ("hidden", "macOS and Windows left files", a_folder(*GOOD, "__MACOSX/a/1.jpg", "cat/Thumbs.db"),
        Works(num_hidden=2)),
    ("empty-class", "a class without images", a_folder(*GOOD, "cow/"), Works(noted=("cow",))),
    ("empty", "an empty folder", a_folder(), Refused("photos")),
    ("beside", "an image beside the classes", a_folder(*GOOD, "x.jpg"), Works(noted=("1 image", "x.jpg"))),
    ("an-image", "one image", a_folder(*GOOD, data="photos/cat/1.jpg"), Refused("photos/cat/1.jpg", "carnet predict")),
    ("spaces", "spaces in names", a_folder("my cat/1 a.jpg", "dog/1.jpg"), Works(2, ("dog", "my cat"))),
    ("split", "a split of another name", a_folder("train/cat/1.jpg", "train/dog/1.jpg", "holdout/cat/1.jpg"),
        Refused("train", "holdout", "1 image", "--layout splits", "--layout classes")),
    ("unlabelled", "a folder of unlabelled images beside splits",
        a_folder(*(f"{split}/{name}" for split in ("train", "test") for name in GOOD), "unlabeled/1.jpg"),
        Works(6, noted=("unlabeled", "1 image"))),
    ("metadata", "a table in each split",
        a_table("file_name,label", "1.jpg,x", "2.jpg,y", name="train/metadata.csv", of=("train/1.jpg", "train/2.jpg")),
        Works(2, ("x", "y"))),
    ("kaggle", "images in one folder, a table beside it",
        a_folder_with_a_table("image,label", "1.jpg,x", "2.jpg,y", of=ALL),
        Works(2, ("x", "y"), noted=("labels.csv", "2", "all"))),
    ("two-tables", "two tables beside the images", a_zip(*ALL, a="file,class\n1.jpg,x", b="file,class\n1.jpg,x"),
        Refused("photos.zip", "a.csv", "b.csv")),
    ("train-and-test", "images to train and to test with, and a table",
        a_folder_with_a_table("filename,label", "1.jpg,x", "2.jpg,y", of=("train/1.jpg", "train/2.jpg", "test/3.jpg")),
        Refused("test", "train", "labels.csv")),
    ("train-and-test-zip", "the same in an archive", a_zip("train/1.jpg", "test/3.jpg", train="file,class\n1.jpg,x"),
        Refused("photos.zip", "train.csv")),
    ("masks", "images and masks, and a table",
        a_folder_with_a_table("file,label", "1.jpg,x", "2.jpg,y", of=("images/1.jpg", "images/2.jpg", "masks/1.jpg")),
        Refused("images", "masks", "labels.csv")),
    ("masks-alone", "images and masks", a_folder("images/1.jpg", "images/2.jpg", "masks/1.jpg"),
        Refused("images", "masks", "--layout classes")),
    ("annotations", "images in class folders, and annotations",
        a_folder(*(f"images/{name}" for name in GOOD), "annotations/trimaps/1.png"), Refused("annotations", "images")),
    ("images-beside", "images in class folders, and something without images",
        a_folder(*(f"images/{name}" for name in GOOD), "lists/"), Refused("photos", "'images'")),
    ("a-table-too", "class folders, and a table that says the same", a_folder_with_a_table(HEAD, *ROWS, of=GOOD),
        Works(noted=("labels.csv",))),
    ("another-table", "class folders, and another kind of table", a_folder_with_a_table("id,weight", "1,7", of=GOOD),
        Works(noted=("labels.csv",))),
    ("splits-and-a-table", "splits of class folders, and a table that says otherwise",
        a_folder_with_a_table(HEAD, "train/a/1.jpg,x", of=("train/a/1.jpg", "train/b/1.jpg")),
        Refused("a", "b", "labels.csv")),
    ("training", "Training and Testing",
        a_folder(*(f"{split}/{name}" for split in ("Training", "Testing") for name in GOOD)), Works(6)),
    ("dev", "dev for valid", a_folder(*(f"{split}/{name}" for split in ("train", "dev") for name in GOOD)), Works(6)),
    ("flat-splits", "splits without class folders", a_folder("train_images/1.jpg", "test_images/2.jpg"),
        Refused("test_images", "train_images", "--layout classes")),
    ("other-splits", "splits by names of their own",
        a_folder(*(f"seg_{s}/seg_{s}/{name}" for s in ("train", "test") for name in GOOD), "seg_pred/seg_pred/1.jpg"),
        Refused("seg_test", "seg_train", "--layout classes")),
    ("same-inside", "folders of the same names in the classes", a_folder("cat/2024/1.jpg", "dog/2024/1.jpg"),
        Works(2, noted=("cat", "dog", "2024"))),
    ("latin-1", "a table beside the images that is not UTF-8",
        a_folder_with_a_table("image,label", "1.jpg,é", "2.jpg,y", of=ALL, encoding="latin-1"),
        Refused("labels.csv", "line 2", "UTF-8")),
    ("submission", "a competition's second table",
        a_zip(*ALL, train="file,class\n1.jpg,x\n2.jpg,y", sample_submission="file,class\n3.jpg,x"),
        Works(2, ("x", "y"), noted=("train.csv",))),
]
TABLES: list[Row] = [
    ("plain", "all as it should be", a_table(HEAD, *ROWS), Works()),
    ("wrong-column", "other column names", a_table("img,y", *ROWS), Refused("labels.csv", "line 1", "'img'", "'y'")),
    ("no-header", "no header", a_table(*ROWS), Refused("labels.csv", "line 1")),
    ("missing", "a file is not there", a_table(HEAD, *ROWS, "x.jpg,cat"),
        Refused("labels.csv", "1 of 4", "x.jpg", "line 5")),
    ("spaces", "spaces", a_table("File Path , Label", " cat/1.jpg , my cat", "dog/1.jpg,dog"),
        Works(2, ("dog", "my cat"))),
    ("repeated", "rows repeated", a_table(HEAD, *ROWS, ROWS[0]), Works(noted=("labels.csv", "1 row", "line 5"))),
    ("other-machine", "absolute paths of another machine", a_table(HEAD, *(f"/home/ann/pets/{row}" for row in ROWS)),
        Works(noted=("3 paths", "/home/ann/pets"))),
    ("windows", "absolute paths of a Windows machine", a_table(HEAD, *WINDOWS), Works(noted=("3 paths", "C:/Ann"))),
    ("absolute", "absolute paths of this machine", a_table(HEAD, *("{root}/" + row for row in ROWS)), Works()),
    ("backslashes", "Windows' separators", a_table(HEAD, *(row.replace("/", "\\") for row in ROWS)), Works()),
    ("semicolons", "a spreadsheet's semicolons", a_table(*(row.replace(",", ";") for row in (HEAD, *ROWS))), Works()),
    ("tabs", "tabs", a_table(*(row.replace(",", "\t") for row in (HEAD, *ROWS)), name="labels.tsv"), Works()),
    ("bom", "a byte-order mark", a_table(HEAD, *ROWS, encoding="utf-8-sig"), Works()),
    ("latin-1", "not UTF-8", a_table(HEAD, *ROWS, "x.jpg,é", encoding="latin-1"),
        Refused("labels.csv", "line 5", "UTF-8")),
    ("utf-16", "a spreadsheet's 'Unicode text'", a_table(HEAD, *ROWS, encoding="utf-16"),
        Refused("labels.csv", "line 1", "UTF-8")),
    ("renamed", "called .txt", a_table(HEAD, *ROWS, name="labels.txt"), Works()),
    ("xls", "an old workbook", a_file("labels.xls", b"\xd0\xcf\x11\xe0"), Refused("labels.xls", "Excel", "CSV UTF-8")),
    ("xlsx", "a workbook", a_zip("[Content_Types].xml", name="labels.xlsx"), Refused("labels.xlsx", "CSV UTF-8")),
    ("splits", "splits by any name", a_table("filepath,label,data set",
        "cat/1.jpg,cat,Training", "dog/1.jpg,dog,train", "cat/2.jpg,cat,DEV"), Works(noted=("valid", "dog"))),
    ("unknown-split", "a split of its own", a_table(SPLIT_HEAD, f"{ROWS[0]},x"), Refused("line 2", "'x'")),
    ("no-split", "a split left empty", a_table(SPLIT_HEAD, f"{ROWS[0]},"), Refused("line 2", "split")),
    ("no-class", "a class left empty", a_table(HEAD, *ROWS, "x.jpg,"), Refused("line 5", "class")),
    ("no-path", "a path left empty", a_table(HEAD, ",cat"), Refused("line 2", "path")),
    ("two-classes", "two classes for one file", a_table(HEAD, *ROWS, "cat/1.jpg,dog"),
        Refused("line 5", "cat/1.jpg", "'dog'", "'cat'", "line 2")),
    ("two-splits", "two splits for one file", a_table(SPLIT_HEAD, f"{ROWS[0]},train", f"{ROWS[0]},test"),
        Refused("line 3", "cat/1.jpg", "'test'", "'train'", "line 2")),
    ("a-folder", "a folder in a row", a_table(HEAD, "cat,cat"), Refused("line 2", "cat")),
    ("empty", "an empty file", a_table(), Refused("labels.csv", "filepath,label")),
    ("only-header", "a header only", a_table(HEAD), Refused("labels.csv", "filepath,label")),
    ("columns", "a comma without quotes", a_table(HEAD, "a,b.jpg,cat"), Refused("line 2", "3 columns")),
    ("quote", "a quotation mark left open", a_table(HEAD, '"cat/1.jpg,cat'), Refused("labels.csv", "line 2")),
    ("line-break", "a line break in a class", a_table(HEAD, 'cat/1.jpg,"c\nat"'), Refused("labels.csv", "class")),
    ("one-class", "one class only", a_table(HEAD, *ROWS[:2]), Refused("'cat'")),
    ("not-in-train", "a class that train has not", a_table(SPLIT_HEAD,
        "cat/1.jpg,cat,train", "dog/1.jpg,dog,train", "cat/2.jpg,cow,test"), Refused("test", "'cow'")),
    ("parquet", "a Parquet file", a_file("labels.parquet", b"PAR1 and more"), Refused("labels.parquet")),
    ("two-folders", "images to train and to test with beside it",
        a_table(HEAD, "1.jpg,x", "2.jpg,y", name="train.csv", of=("train_x/1.jpg", "train_x/2.jpg", "test_x/1.jpg")),
        Works(2, ("x", "y"), noted=("2 paths", "train_x"))),
    ("parts", "images in parts", a_table("image_id,label", "1,x", "2,y", of=("part_1/1.jpg", "part_2/2.jpg")),
        Works(2, ("x", "y"), noted=("part_1", "part_2"))),
    ("which-folder", "one name in two folders", a_table(HEAD, "1.jpg,x", of=("a/1.jpg", "b/1.jpg")),
        Refused("labels.csv", "1.jpg", "a", "b")),
    ("two-files-one-here", "two files of another machine, one of them here",
        a_table(HEAD, "/a/train/cat/1.jpg,cat", "/a/test/cat/1.jpg,cat", "/a/train/dog/1.jpg,dog", of=GOOD),
        Refused("/a/train/cat/1.jpg", "/a/test/cat/1.jpg", "2", "3")),
    ("bare-names", "files of another machine, without their folders",
        a_table(HEAD, "/a/cat/1.jpg,cat", "/a/dog/2.jpg,dog", "/a/cat/2.jpg,dog", of=("1.jpg", "2.jpg")),
        Refused("/a/dog/2.jpg", "/a/cat/2.jpg", "3", "4")),
    ("without-extension", "names without .jpg", a_table("id,label", "1,x", "2,y", of=("1.jpg", "2.PNG")),
        Works(2, ("x", "y"))),
    ("two-extensions", "a name that fits two files", a_table("id,label", "1,x", of=("1.jpg", "1.png")),
        Refused("labels.csv", "1.jpg", "1.png")),
    ("from-here", "paths from the current folder", a_table(HEAD, *(f"photos/{row}" for row in ROWS)),
        Works(noted=("3 paths",))),
    ("sep", "a line for a spreadsheet", a_table("sep=;", *(row.replace(",", ";") for row in (HEAD, *ROWS))), Works()),
    ("sep-row", "the same, and a mistake", a_table("sep=,", HEAD, *ROWS, "x.jpg,"), Refused("line 6", "class")),
    ("binary", "something else", a_file("labels.csv", b"\x00\x01\x02"), Refused("labels.csv")),
]
ARCHIVES: list[Row] = [
    ("zip", "all as it should be", a_zip(*GOOD), Works()),
    ("tar", "all as it should be", a_tar(*GOOD), Works()),
    ("one-top-folder", "packed with its folder", a_tar(*IN_A_FOLDER), Works(noted=("photos",))),
    ("dot", "packed from inside", a_tar(*(f"./{name}" for name in GOOD)), Works()),
    ("macos", "packed by macOS", a_zip(*GOOD, "__MACOSX/cat/._1.jpg", "__MACOSX/cat/._2.jpg", "cat/.DS_Store"),
        Works(num_hidden=2)),
    ("hidden-tar", "packed by macOS's tar", a_tar(*GOOD, "./._cat", "cat/._1.jpg"), Works(num_hidden=2)),
    ("accents", "accents packed by macOS", a_zip("tea/1.jpg", "caf??/1.jpg", then=named_by_macos),
        Works(2, ("café", "tea"))),
    ("windows", "packed by an old Windows", a_zip(*(name.replace("/", "\\") for name in GOOD)), Works()),
    ("renamed", "a tar archive called .zip", a_tar(*GOOD, name="photos.zip"), Works()),
    ("kaggle", "images in one folder, a table beside it", a_zip(*ALL, train="file,class\n1.jpg,cat\n2.jpg,dog"),
        Works(2, noted=("train.csv",))),
    ("nested", "an archive in an archive", a_zip(*GOOD, then=nested), Refused("'photos.zip'")),
    ("encrypted", "with a password", a_zip(*GOOD, then=encrypt), Refused("'cat/1.jpg'")),
    ("texts", "no images", a_zip(notes="…"), Refused("photos.zip", "1 other file")),
    ("empty-zip", "an empty archive", a_zip(), Refused("photos.zip")),
    ("empty-tar", "an empty archive", a_tar(), Refused("photos.tar.gz")),
    ("up", "a name that leads out", a_tar("../1.jpg"), Refused("'../1.jpg'")),
    ("up-zip", "a name that leads out", a_zip("a/../../1.jpg"), Refused("'a/../../1.jpg'")),
    ("absolute", "an absolute name", a_tar("/tmp/1.jpg"), Refused("'/tmp/1.jpg'")),
    ("drive", "a drive's letter", a_zip("C:/1.jpg"), Refused("'C:/1.jpg'")),
    ("link", "a link", a_tar(*GOOD, others=(link("3.jpg", "1.jpg"),)), Refused("'3.jpg'")),
    ("link-zip", "a link", a_zip(*GOOD, then=add_link), Refused("'link.jpg'")),
    ("hard-link", "a link", a_tar(others=(link("3.jpg", "1.jpg", tarfile.LNKTYPE),)), Refused("'3.jpg'")),
    ("device", "a device", a_tar(others=(link("3.jpg", "", tarfile.CHRTYPE),)), Refused("'3.jpg'")),
    ("bomb", "far more in it than it looks", a_zip(then=stuffed), Refused("'cat/3.jpg'")),
    ("twice", "a name that is there twice", a_zip("cat/a.jpg", "./cat/a.jpg"), Refused("'./cat/a.jpg'")),
    ("folders", "folders that some system takes for one", a_zip("cat/1.jpg", "cat./2.jpg"),
        Refused("photos.zip", "'cat'")),
    ("bad-table", "a mistake in its table", a_zip(*ALL, train="file,class\n1.jpg,"),
        Refused("photos.zip/train.csv", "line 2", "class")),
    ("table-reaches-out", "a table with a path of this machine", a_zip_that_names("{elsewhere},x"),
        Refused("photos.zip/labels.csv", "1 of 3", "9.jpg", "line 4")),
    ("table-leads-out", "a table with a path that leads out", a_zip_that_names("../" * 40 + "{elsewhere},x"),
        Refused("photos.zip/labels.csv", "1 of 3", "9.jpg", "line 4")),
    ("parquet", "an archive of Parquet", a_zip("a.parquet", then=lambda path: write_zip(path, {"a.parquet": b"PAR1"})),
        Refused("photos.zip", "'a.parquet'")),
    ("empty-file", "a download of nothing", a_file("photos.zip", b""), Refused("photos.zip")),
    ("web-page", "a page to sign in", a_file("photos.zip", b"\n<!DOCTYPE html><html>"),
        Refused("photos.zip", "web page")),
    ("lfs", "a Git LFS pointer", a_file("photos.tar", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab"),
        Refused("photos.tar", "Git LFS", "git lfs pull")),
    ("text", "a server's message", a_file("photos.tar.gz", b'{"error": "quota"}'), Refused("photos.tar.gz", ".csv")),
    ("cut-zip", "half a download", a_zip(*GOOD, then=cut), Refused("photos.zip")),
    ("cut-tar", "half a download", a_tar(*GOOD, then=cut), Refused("photos.tar.gz")),
    ("rar", "a RAR archive", a_file("photos.rar", b"Rar!\x1a\x07\x01"), Refused("photos.rar", "RAR")),
    ("7z", "a 7z archive", a_file("photos.7z", b"7z\xbc\xaf\x27\x1c"), Refused("photos.7z", "7z archive")),
    ("zstd", "packed with zstd", a_file("photos.tar.zst", b"\x28\xb5\x2f\xfd"), Refused("photos.tar.zst", "zstd")),
    ("joined", "two archives joined", a_tar(*GOOD, name="photos.tar", packed="", then=doubled), Refused("photos.tar")),
    ("gz", "one packed file", a_file("a.csv.gz", b"\x1f\x8b\x08\x00 data"), Refused("a.csv.gz")),
    ("one-class", "one class only", a_zip(*GOOD[:2]), Refused("'cat'")),
]
IGNORED: list[Row] = [
    ("plain", "as in data.csv", a_list("dog/2.jpg"), Works()),
    ("comments", "comments and empty lines", a_list("# blurred", "", "  dog/2.jpg  "), Works()),
    ("windows", "written on Windows", a_list("dog\\2.jpg\r", encoding="utf-8-sig"), Works()),
    ("absolute", "absolute paths", a_list("{root}/dog/2.jpg"), Works()),
    ("here", "paths from the current folder", a_list("photos/dog/2.jpg"), Works()),
    ("dots", "paths with dots", a_list("./cat/../dog/2.jpg"), Works()),
    ("twice", "a line twice", a_list("dog/2.jpg", "./dog/2.jpg"), Works()),
    ("empty", "an empty list", a_list(), Works(4)),
    ("typo", "a name misspelt", a_list("dog/2.png", "cat/1.jpg"), Works(noted=("1 line", "'dog/2.png'"))),
    ("folder", "a class's folder", a_list("dog/"), Works(4, noted=("1 line", "'dog/'"))),
    ("class", "all images of a class", a_list("a/1.jpg", of=(*GOOD, "a/1.jpg")), Works(noted=("1 class", "a"))),
    ("all", "all images", a_list(*GOOD, of=GOOD), Refused("photos")),
    ("no-list", "the list's name misspelt", a_list(name="ignored.txt"), Refused("ignored.txt")),
    ("a-folder", "a folder for a list", a_list(name="photos"), Refused("photos")),
    ("latin-1", "not UTF-8", a_list("é.jpg", encoding="latin-1"), Refused("ignore.txt", "UTF-8")),
    ("an-image", "an image for a list", a_list(name="photos/cat/1.jpg"), Refused("photos/cat/1.jpg", "UTF-8")),
]
# fmt: on
FORMS = {"folder": FOLDERS, "table": TABLES, "archive": ARCHIVES, "ignore": IGNORED}


def missing(names: tuple[str, ...], text: str) -> list[str]:
    """The names that do not occur in a text as whole words."""
    return [name for name in names if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)]


@pytest.mark.parametrize(
    ("make", "outcome"),
    [
        pytest.param(make, outcome, id=f"{form}-{name}")
        for form, rows in FORMS.items()
        for name, _, make, outcome in rows
    ],
)
def test_what_becomes_of_it(
    make: Make, outcome: Works | Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data, ignore = make(tmp_path)
    if isinstance(outcome, Refused):
        with pytest.raises(DataError) as caught:
            find_images(data, ignore=read_ignore_file(ignore) if ignore else ())
        assert missing(outcome.named, str(caught.value)) == []
        assert (caught.value.exit_code, "\n" in str(caught.value)) == (2, False)
        return
    found = find_images(data, ignore=read_ignore_file(ignore) if ignore else ())
    assert (len(found.samples), found.classes) == (outcome.num_images, outcome.classes)
    assert found.num_hidden == outcome.num_hidden
    assert missing(outcome.noted, " ".join(found.warnings)) == []
    assert bool(found.warnings) == bool(outcome.noted)
    assert all(sample.path.read_bytes().startswith(IMAGE) for sample in found.samples)
