"""What people do with their data, and what becomes of it: it works, perhaps with a note, or one line says the way out.

To add a form, add its rows and name them in FORMS. A row has a name, what the user did, how the data is made, and the
outcome. Those of data sets, by far the most, have a file of their own: test_hub.py.
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
from carnet.errors import CarnetError


@dataclass(frozen=True)
class Works:
    """The images are found: how many of which classes, what is noted, and how many hidden files are passed over."""

    num_images: int = 3
    classes: tuple[str, ...] = ("cat", "dog")
    note: str = ""
    num_hidden: int = 0


@dataclass(frozen=True)
class Refused:
    """One line that matches."""

    message: str


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
    ("one-top-folder", "unpacked into one folder more", a_folder(*(f"a/b/{name}" for name in GOOD)), Works(note="a/b")),
    ("loose", "no class folders", a_folder("1.jpg", "2.jpg"),
        Refused(r"\(but 2 images in none\); DATA needs one folder of images per class, such as cat/1.jpg")),
    ("one-class", "one class only", a_folder("cat/1.jpg"), Refused("one class only .'cat'.; .*, so add another")),
    ("misspelt", "name misspelt", a_folder(*GOOD, data="photo"), Refused("no folder .*; did you mean .*photos")),
    ("no-train", "valid and test only", a_folder("valid/a/1.jpg", "test/b/1.jpg"), Refused("but no train; add the im")),
    ("both", "val beside valid", a_folder("val/a/1.jpg", "valid/a/1.jpg"), Refused("val and valid; keep one of them")),
    ("capitals", "a class of valid in other capitals",
        a_folder("train/cat/1.jpg", "train/dog/1.jpg", "valid/Cat/1.jpg"),
        Refused(r"valid has 1 class that train does not have: 'Cat' \(1 image; did you mean 'cat'\?\); rename")),
    ("hidden", "macOS and Windows left files", a_folder(*GOOD, "__MACOSX/a/1.jpg", "cat/Thumbs.db"),
        Works(num_hidden=2)),
    ("empty-class", "a class without images", a_folder(*GOOD, "cow/"), Works(note="left out, having no images: cow")),
    ("empty", "an empty folder", a_folder(), Refused("no images .*; DATA needs one folder of images per class")),
    ("beside", "an image beside the classes", a_folder(*GOOD, "x.jpg"), Works(note="1 image directly in")),
    ("an-image", "one image", a_folder(*GOOD, data="photos/cat/1.jpg"), Refused("is one image; DATA is a folder")),
    ("spaces", "spaces in names", a_folder("my cat/1 a.jpg", "dog/1.jpg"), Works(2, ("dog", "my cat"))),
    ("split", "a split of another name", a_folder("train/cat/1.jpg", "train/dog/1.jpg", "holdout/cat/1.jpg"),
        Refused("train in .* could be a split, which would leave out 1 image in holdout, or a class .*--layout")),
    ("unlabelled", "a folder of unlabelled images beside splits",
        a_folder(*(f"{split}/{name}" for split in ("train", "test") for name in GOOD), "unlabeled/1.jpg"),
        Works(6, note="folder unlabeled is none of the splits and is left out, with 1 image")),
    ("metadata", "a table in each split",
        a_table("file_name,label", "1.jpg,x", "2.jpg,y", name="train/metadata.csv", of=("train/1.jpg", "train/2.jpg")),
        Works(2, ("x", "y"))),
    ("kaggle", "images in one folder, a table beside it",
        a_folder_with_a_table("image,label", "1.jpg,x", "2.jpg,y", of=ALL),
        Works(2, ("x", "y"), note="labels.csv gives the classes .* 2 paths found in all, beside the table")),
    ("two-tables", "two tables beside the images", a_zip(*ALL, a="file,class\n1.jpg,x", b="file,class\n1.jpg,x"),
        Refused("has 2 tables that could give the classes: a.csv, b.csv; unpack it, and name one of them")),
    ("train-and-test", "images to train and to test with, and a table",
        a_folder_with_a_table("filename,label", "1.jpg,x", "2.jpg,y", of=("train/1.jpg", "train/2.jpg", "test/3.jpg")),
        Refused("the folders test, train or labels.csv in .* could give the classes; name the table, or move it away")),
    ("train-and-test-zip", "the same in an archive", a_zip("train/1.jpg", "test/3.jpg", train="file,class\n1.jpg,x"),
        Refused("or train.csv in .*photos.zip could give the classes; unpack it, and name the table, or move it away")),
    ("masks", "images and masks, and a table",
        a_folder_with_a_table("file,label", "1.jpg,x", "2.jpg,y", of=("images/1.jpg", "images/2.jpg", "masks/1.jpg")),
        Refused("the folders images, masks or labels.csv in")),
    ("masks-alone", "images and masks", a_folder("images/1.jpg", "images/2.jpg", "masks/1.jpg"),
        Refused("the folders images, masks in .* look like images and pictures about them, not like classes; name")),
    ("annotations", "images in class folders, and annotations",
        a_folder(*(f"images/{name}" for name in GOOD), "annotations/trimaps/1.png"),
        Refused("the folders annotations, images in .* look like images and pictures about them")),
    ("images-beside", "images in class folders, and something without images",
        a_folder(*(f"images/{name}" for name in GOOD), "lists/"),
        Refused("one class only .*; .* so add another, or name the folder whose folders are the classes")),
    ("a-table-too", "class folders, and a table that says the same", a_folder_with_a_table(HEAD, *ROWS, of=GOOD),
        Works(note="labels.csv passed over, since the folders give the classes")),
    ("another-table", "class folders, and another kind of table", a_folder_with_a_table("id,weight", "1,7", of=GOOD),
        Works(note="labels.csv passed over, since the folders give the classes")),
    ("splits-and-a-table", "splits of class folders, and a table that says otherwise",
        a_folder_with_a_table(HEAD, "train/a/1.jpg,x", of=("train/a/1.jpg", "train/b/1.jpg")),
        Refused("the folders a, b or labels.csv in")),
    ("training", "Training and Testing",
        a_folder(*(f"{split}/{name}" for split in ("Training", "Testing") for name in GOOD)), Works(6)),
    ("dev", "dev for valid", a_folder(*(f"{split}/{name}" for split in ("train", "dev") for name in GOOD)), Works(6)),
    ("flat-splits", "splits without class folders", a_folder("train_images/1.jpg", "test_images/2.jpg"),
        Refused("the folders test_images, train_images in .* look like splits, not like classes; call them train")),
    ("other-splits", "splits by names of their own",
        a_folder(*(f"seg_{s}/seg_{s}/{name}" for s in ("train", "test") for name in GOOD), "seg_pred/seg_pred/1.jpg"),
        Refused("the folders seg_test, seg_train in .* look like splits, not like classes; call them train, valid")),
    ("same-inside", "folders of the same names in the classes", a_folder("cat/2024/1.jpg", "dog/2024/1.jpg"),
        Works(2, note=r"cat, dog hold folders of the same names \(2024\), which are taken for parts of these classes")),
    ("latin-1", "a table beside the images that is not UTF-8",
        a_folder_with_a_table("image,label", "1.jpg,é", "2.jpg,y", of=ALL, encoding="latin-1"),
        Refused("line 2: is not UTF-8; save the table as UTF-8")),
    ("submission", "a competition's second table",
        a_zip(*ALL, train="file,class\n1.jpg,x\n2.jpg,y", sample_submission="file,class\n3.jpg,x"),
        Works(2, ("x", "y"), note="train.csv gives the classes")),
]
TABLES: list[Row] = [
    ("plain", "all as it should be", a_table(HEAD, *ROWS), Works()),
    ("wrong-column", "other column names", a_table("img,y", *ROWS),
        Refused("line 1: found 2 columns, 'img', 'y'; needed are a column for the image's path")),
    ("no-header", "no header", a_table(*ROWS), Refused("line 1 names an image already; put a header above it")),
    ("missing", "a file is not there", a_table(HEAD, *ROWS, "x.jpg,cat"),
        Refused(r"1 of 4 files are not there: x.jpg \(line 5\); paths count from the table's folder, so correct them")),
    ("spaces", "spaces", a_table("File Path , Label", " cat/1.jpg , my cat", "dog/1.jpg,dog"),
        Works(2, ("dog", "my cat"))),
    ("repeated", "rows repeated", a_table(HEAD, *ROWS, ROWS[0]), Works(note="1 row .* counted once: line 5")),
    ("other-machine", "absolute paths of another machine", a_table(HEAD, *(f"/home/ann/pets/{row}" for row in ROWS)),
        Works(note="3 paths of another machine, below /home/ann/pets, found below")),
    ("windows", "absolute paths of a Windows machine", a_table(HEAD, *WINDOWS), Works(note="machine, below C:/Ann,")),
    ("absolute", "absolute paths of this machine", a_table(HEAD, *("{root}/" + row for row in ROWS)), Works()),
    ("backslashes", "Windows' separators", a_table(HEAD, *(row.replace("/", "\\") for row in ROWS)), Works()),
    ("semicolons", "a spreadsheet's semicolons", a_table(*(row.replace(",", ";") for row in (HEAD, *ROWS))), Works()),
    ("tabs", "tabs", a_table(*(row.replace(",", "\t") for row in (HEAD, *ROWS)), name="labels.tsv"), Works()),
    ("bom", "a byte-order mark", a_table(HEAD, *ROWS, encoding="utf-8-sig"), Works()),
    ("latin-1", "not UTF-8", a_table(HEAD, *ROWS, "x.jpg,é", encoding="latin-1"),
        Refused("line 5: is not UTF-8; save the table as UTF-8")),
    ("utf-16", "a spreadsheet's 'Unicode text'", a_table(HEAD, *ROWS, encoding="utf-16"),
        Refused("line 1: is not UTF-8; save")),
    ("renamed", "called .txt", a_table(HEAD, *ROWS, name="labels.txt"), Works()),
    ("xls", "an old workbook", a_file("labels.xls", b"\xd0\xcf\x11\xe0"),
        Refused("is an Excel workbook; save it as 'CSV")),
    ("xlsx", "a workbook", a_zip("[Content_Types].xml", name="labels.xlsx"),
        Refused("is a spreadsheet or .*; save it as 'CSV")),
    ("splits", "splits by any name", a_table("filepath,label,data set",
        "cat/1.jpg,cat,Training", "dog/1.jpg,dog,train", "cat/2.jpg,cat,DEV"),
        Works(note="train without images in valid: dog")),
    ("unknown-split", "a split of its own", a_table(SPLIT_HEAD, f"{ROWS[0]},x"),
        Refused("line 2: unknown split 'x'; write")),
    ("no-split", "a split left empty", a_table(SPLIT_HEAD, f"{ROWS[0]},"),
        Refused("line 2: the split is empty; write")),
    ("no-class", "a class left empty", a_table(HEAD, *ROWS, "x.jpg,"),
        Refused("line 5: the class is empty; fill it in")),
    ("no-path", "a path left empty", a_table(HEAD, ",cat"), Refused("line 2: the path is empty; fill it in")),
    ("two-classes", "two classes for one file", a_table(HEAD, *ROWS, "cat/1.jpg,dog"),
        Refused("line 5: cat/1.jpg is 'dog', but 'cat' in line 2; keep one of the two")),
    ("two-splits", "two splits for one file", a_table(SPLIT_HEAD, f"{ROWS[0]},train", f"{ROWS[0]},test"),
        Refused("line 3: cat/1.jpg is 'test', but 'train' in line 2; keep one of the two")),
    ("a-folder", "a folder in a row", a_table(HEAD, "cat,cat"), Refused("line 2: cat is a folder; name each image")),
    ("empty", "an empty file", a_table(), Refused("is empty; it needs a header such as")),
    ("only-header", "a header only", a_table(HEAD), Refused("no rows below it; it needs a header")),
    ("columns", "a comma without quotes", a_table(HEAD, "a,b.jpg,cat"),
        Refused("line 2 has 3 columns .* quotation marks")),
    ("quote", "a quotation mark left open", a_table(HEAD, '"cat/1.jpg,cat'), Refused("is a quotation mark missing")),
    ("line-break", "a line break in a class", a_table(HEAD, 'cat/1.jpg,"c\nat"'),
        Refused("a line break or the like; remove")),
    ("one-class", "one class only", a_table(HEAD, *ROWS[:2]), Refused("one class only .'cat'.; .*, so add another")),
    ("not-in-train", "a class that train has not", a_table(SPLIT_HEAD,
        "cat/1.jpg,cat,train", "dog/1.jpg,dog,train", "cat/2.jpg,cow,test"),
        Refused("test has 1 class that train does not have: 'cow'")),
    ("parquet", "a Parquet file", a_file("labels.parquet", b"PAR1 and more"),
        Refused("is damaged or incomplete, its end is missing; copy or download it again")),
    ("two-folders", "images to train and to test with beside it",
        a_table(HEAD, "1.jpg,x", "2.jpg,y", name="train.csv", of=("train_x/1.jpg", "train_x/2.jpg", "test_x/1.jpg")),
        Works(2, ("x", "y"), note="2 paths found in train_x, beside the table")),
    ("parts", "images in parts", a_table("image_id,label", "1,x", "2,y", of=("part_1/1.jpg", "part_2/2.jpg")),
        Works(2, ("x", "y"), note="1 path found in part_1, .* 1 path found in part_2, beside the table")),
    ("which-folder", "one name in two folders", a_table(HEAD, "1.jpg,x", of=("a/1.jpg", "b/1.jpg")),
        Refused("labels.csv: 1.jpg lies in a and b; write the folder into the path")),
    ("two-files-one-here", "two files of another machine, one of them here",
        a_table(HEAD, "/a/train/cat/1.jpg,cat", "/a/test/cat/1.jpg,cat", "/a/train/dog/1.jpg,dog", of=GOOD),
        Refused("lines 2 and 3 name different files, /a/train/cat/1.jpg and /a/test/cat/1.jpg, but only one is here")),
    ("bare-names", "files of another machine, without their folders",
        a_table(HEAD, "/a/cat/1.jpg,cat", "/a/dog/2.jpg,dog", "/a/cat/2.jpg,dog", of=("1.jpg", "2.jpg")),
        Refused("lines 3 and 4 name different files, /a/dog/2.jpg and /a/cat/2.jpg, but only one is here; bring")),
    ("without-extension", "names without .jpg", a_table("id,label", "1,x", "2,y", of=("1.jpg", "2.PNG")),
        Works(2, ("x", "y"))),
    ("two-extensions", "a name that fits two files", a_table("id,label", "1,x", of=("1.jpg", "1.png")),
        Refused("labels.csv: 1 could be 1.jpg or 1.png; write the extension as well")),
    ("from-here", "paths from the current folder", a_table(HEAD, *(f"photos/{row}" for row in ROWS)),
        Works(note="3 paths found by counting from")),
    ("sep", "a line for a spreadsheet", a_table("sep=;", *(row.replace(",", ";") for row in (HEAD, *ROWS))), Works()),
    ("sep-row", "the same, and a mistake", a_table("sep=,", HEAD, *ROWS, "x.jpg,"), Refused("line 6: the class is")),
    ("binary", "something else", a_file("labels.csv", b"\x00\x01\x02"), Refused("none of the forms of DATA")),
]
ARCHIVES: list[Row] = [
    ("zip", "all as it should be", a_zip(*GOOD), Works()),
    ("tar", "all as it should be", a_tar(*GOOD), Works()),
    ("one-top-folder", "packed with its folder", a_tar(*IN_A_FOLDER), Works(note="lies in one folder, photos, which")),
    ("dot", "packed from inside", a_tar(*(f"./{name}" for name in GOOD)), Works()),
    ("macos", "packed by macOS", a_zip(*GOOD, "__MACOSX/cat/._1.jpg", "__MACOSX/cat/._2.jpg", "cat/.DS_Store"),
        Works(num_hidden=2)),
    ("hidden-tar", "packed by macOS's tar", a_tar(*GOOD, "./._cat", "cat/._1.jpg"), Works(num_hidden=2)),
    ("accents", "accents packed by macOS", a_zip("tea/1.jpg", "caf??/1.jpg", then=named_by_macos),
        Works(2, ("café", "tea"))),
    ("windows", "packed by an old Windows", a_zip(*(name.replace("/", "\\") for name in GOOD)), Works()),
    ("renamed", "a tar archive called .zip", a_tar(*GOOD, name="photos.zip"), Works()),
    ("kaggle", "images in one folder, a table beside it", a_zip(*ALL, train="file,class\n1.jpg,cat\n2.jpg,dog"),
        Works(2, note="train.csv gives the classes")),
    ("nested", "an archive in an archive", a_zip(*GOOD, then=nested),
        Refused("another archive, 'photos.zip'; unpack it")),
    ("encrypted", "with a password", a_zip(*GOOD, then=encrypt),
        Refused("'cat/1.jpg' is encrypted; unpack it with its")),
    ("texts", "no images", a_zip(notes="…"),
        Refused(r"holds no images \(1 other file\); DATA needs one folder of images")),
    ("empty-zip", "an empty archive", a_zip(), Refused("holds no images")),
    ("empty-tar", "an empty archive", a_tar(), Refused("holds no images")),
    ("up", "a name that leads out", a_tar("../1.jpg"),
        Refused("'../1.jpg' has a name that leads out .*; unpack it yourself")),
    ("up-zip", "a name that leads out", a_zip("a/../../1.jpg"), Refused("leads out of its folder; unpack it yourself")),
    ("absolute", "an absolute name", a_tar("/tmp/1.jpg"),
        Refused("'/tmp/1.jpg' has an absolute name; unpack it yourself")),
    ("drive", "a drive's letter", a_zip("C:/1.jpg"), Refused("'C:/1.jpg' has an absolute name; unpack it yourself")),
    ("link", "a link", a_tar(*GOOD, others=(link("3.jpg", "1.jpg"),)),
        Refused("'3.jpg' is a symbolic link; unpack it")),
    ("link-zip", "a link", a_zip(*GOOD, then=add_link), Refused("'link.jpg' is a symbolic link; unpack it yourself")),
    ("hard-link", "a link", a_tar(others=(link("3.jpg", "1.jpg", tarfile.LNKTYPE),)),
        Refused("is a hard link; unpack it")),
    ("device", "a device", a_tar(others=(link("3.jpg", "", tarfile.CHRTYPE),)),
        Refused("is a device; unpack it yourself")),
    ("bomb", "far more in it than it looks", a_zip(then=stuffed),
        Refused("with 'cat/3.jpg' it unpacks to more than .*; unpack it")),
    ("twice", "a name that is there twice", a_zip("cat/a.jpg", "./cat/a.jpg"),
        Refused("'./cat/a.jpg' has a name that is there twice")),
    ("folders", "folders that some system takes for one", a_zip("cat/1.jpg", "cat./2.jpg"),
        Refused("systems take for 'cat'; unpack it")),
    ("bad-table", "a mistake in its table", a_zip(*ALL, train="file,class\n1.jpg,"),
        Refused("^[^ ]*/photos.zip/train.csv line 2: the class is empty; fill it in")),
    ("table-reaches-out", "a table with a path of this machine", a_zip_that_names("{elsewhere},x"),
        Refused("/photos.zip/labels.csv: 1 of 3 files are not there: .*9.jpg .line 4")),
    ("table-leads-out", "a table with a path that leads out", a_zip_that_names("../" * 40 + "{elsewhere},x"),
        Refused("/photos.zip/labels.csv: 1 of 3 files are not there: .*9.jpg .line 4")),
    ("parquet", "an archive of Parquet", a_zip("a.parquet", then=lambda path: write_zip(path, {"a.parquet": b"PAR1"})),
        Refused("holds no images but a Parquet file, 'a.parquet'; unpack it")),
    ("empty-file", "a download of nothing", a_file("photos.zip", b""),
        Refused("is no archive but empty; fetch it again")),
    ("web-page", "a page to sign in", a_file("photos.zip", b"\n<!DOCTYPE html><html>"),
        Refused("is a web page in place of the data; fetch it again, signed in")),
    ("lfs", "a Git LFS pointer", a_file("photos.tar", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab"),
        Refused("is a Git LFS pointer in place of the data; fetch the file itself")),
    ("text", "a server's message", a_file("photos.tar.gz", b'{"error": "quota"}'),
        Refused("is no archive but a text; fetch it again, or name it .csv if it is a table")),
    ("cut-zip", "half a download", a_zip(*GOOD, then=cut), Refused("is damaged or incomplete .*; fetch it again")),
    ("cut-tar", "half a download", a_tar(*GOOD, then=cut), Refused("is damaged or incomplete .*; fetch it again")),
    ("rar", "a RAR archive", a_file("photos.rar", b"Rar!\x1a\x07\x01"),
        Refused("is a RAR archive; unpack it, and name")),
    ("7z", "a 7z archive", a_file("photos.7z", b"7z\xbc\xaf\x27\x1c"), Refused("is a 7z archive; unpack it, and name")),
    ("zstd", "packed with zstd", a_file("photos.tar.zst", b"\x28\xb5\x2f\xfd"), Refused("packed with zstd; unpack it")),
    ("joined", "two archives joined", a_tar(*GOOD, name="photos.tar", packed="", then=doubled),
        Refused("goes on after its end mark, as if two archives were joined; unpack it yourself, and name the folder")),
    ("gz", "one packed file", a_file("a.csv.gz", b"\x1f\x8b\x08\x00 data"),
        Refused("is no tar archive, or a damaged one; unpack it")),
    ("one-class", "one class only", a_zip(*GOOD[:2]), Refused("one class only .'cat'.; .*, so add another")),
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
    ("typo", "a name misspelt", a_list("dog/2.png", "cat/1.jpg"),
        Works(note="1 line .* names no image here: 'dog/2.png'")),
    ("folder", "a class's folder", a_list("dog/"), Works(4, note="1 line .* names no image here: 'dog/'")),
    ("class", "all images of a class", a_list("a/1.jpg", of=(*GOOD, "a/1.jpg")),
        Works(note="1 class of all left out, having no images: a")),
    ("all", "all images", a_list(*GOOD, of=GOOD),
        Refused("no images are left in .*; the ignore list names them all, so")),
    ("no-list", "the list's name misspelt", a_list(name="ignored.txt"),
        Refused("cannot read the ignore list .*No such")),
    ("a-folder", "a folder for a list", a_list(name="photos"), Refused("cannot read the ignore list .*directory")),
    ("latin-1", "not UTF-8", a_list("é.jpg", encoding="latin-1"),
        Refused("is not UTF-8; an ignore list is a text with")),
    ("an-image", "an image for a list", a_list(name="photos/cat/1.jpg"),
        Refused("is not UTF-8; an ignore list is a text")),
]
# fmt: on
FORMS = {"folder": FOLDERS, "table": TABLES, "archive": ARCHIVES, "ignore": IGNORED}


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
        with pytest.raises(CarnetError) as caught:
            find_images(data, ignore=read_ignore_file(ignore) if ignore else ())
        message = str(caught.value)
        assert re.search(outcome.message, message)
        assert (caught.value.exit_code, "\n" in message) == (2, False)
        return
    found = find_images(data, ignore=read_ignore_file(ignore) if ignore else ())
    assert (len(found.samples), found.classes) == (outcome.num_images, outcome.classes)
    assert found.num_hidden == outcome.num_hidden
    notes = " | ".join(found.warnings)
    assert re.search(outcome.note, notes) if outcome.note else not notes
    assert all(sample.path.read_bytes().startswith(IMAGE) for sample in found.samples)


@pytest.mark.parametrize("form", FORMS)
def test_each_form_has_its_ten(form: str) -> None:
    assert len({name for name, *_ in FORMS[form]}) == len(FORMS[form]) >= 10
