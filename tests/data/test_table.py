import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from packing import tree

from carnet.data.find import find_images
from carnet.data.table import Locator, fits, list_table
from carnet.errors import DataError


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def tell(warnings: Sequence[str], *patterns: str) -> bool:
    """Return whether each warning matches its pattern."""
    return len(warnings) == len(patterns) and all(map(re.search, patterns, warnings))


@pytest.mark.parametrize(
    "header",
    [
        "filepath,label",
        "class id,filepaths,labels,data set",
        "Image Path,extra,CLASS,Split",
        "file_name;more;Category",
        "image\tx\tclass name\tsubset",
        '"path","y, or so","label"',
    ],
)
def test_headers_that_fit(header: str, tmp_path: Path) -> None:
    assert fits(write(tmp_path / "t.csv", header))


@pytest.mark.parametrize("header", ["", "label", "filepath", "class id,filepaths", "file label", "a,b,c", "\xe9"])
def test_headers_that_do_not(header: str, tmp_path: Path) -> None:
    assert not fits(write(tmp_path / "t.csv", header))
    assert not fits(tmp_path / "none.csv")


def test_of_two_columns_that_fit_the_usual_one_is_taken(tmp_path: Path) -> None:
    root = tree(tmp_path, "a.jpg", "b.jpg")
    header = "image,class,filepath,label,subset,split"
    found = list_table(write(root / "t.csv", header, "1,9,a.jpg,x,test,train", "2,9,b.jpg,y,test,train"))
    assert set(found.splits["train"]) == {"x", "y"}
    assert tell(found.warnings, "t.csv .* filepath .* image", "t.csv .* label .* class", "t.csv .* split .* subset")


def test_blank_lines_and_quotes(tmp_path: Path) -> None:
    root = tree(tmp_path, "a, b.jpg", 'c"d.jpg', "e.jpg")
    lines = ("", "path,label", "", '"a, b.jpg","x, y"', '"c""d.jpg",z', ",", "e.jpg,z", "", "")
    found = list_table(write(root / "t.csv", *lines))
    assert {label: [path.name for path in paths] for label, paths in found.splits["all"].items()} == {
        "x, y": ["a, b.jpg"],
        "z": ['c"d.jpg', "e.jpg"],
    }


def test_line_numbers_count_lines_of_the_file(tmp_path: Path) -> None:
    root = tree(tmp_path, "a.jpg")
    table = write(root / "t.csv", "path,note,label", 'a.jpg,"two\nlines",x', "", "a.jpg,,y")
    with pytest.raises(DataError, match=r"t.csv line 5: a.jpg .*'y'.* 'x' .*line 3"):
        list_table(table)


def test_one_file_by_two_names_is_one_file(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos", "a.jpg", "b.jpg")
    rows = ("a.jpg,x", "./a.jpg,x", "x/../a.jpg,x", f"{root / 'a.jpg'},x", "../photos/b.jpg,y")
    found = find_images(write(root / "t.csv", "path,label", *rows))
    assert [found.relative(sample) for sample in found.samples] == ["a.jpg", "../photos/b.jpg"]
    assert tell(found.warnings, "3 rows of t.csv .* line 3, 4, 5")


def test_images_elsewhere_have_their_full_names(tmp_path: Path) -> None:
    elsewhere = tree(tmp_path / "elsewhere", "a.jpg", "b.jpg")
    (tmp_path / "tables").mkdir()
    rows = [f"{path.as_posix()},{path.stem}" for path in sorted(elsewhere.iterdir())]
    found = find_images(write(tmp_path / "tables" / "t.csv", "path,label", *rows))
    assert [found.relative(sample) for sample in found.samples] == [p.as_posix() for p in sorted(elsewhere.iterdir())]


def test_what_is_listed_counts_whatever_it_looks_like(tmp_path: Path) -> None:
    """Nothing is left out silently: the scan decodes it and finds that it is no image."""
    root = tree(tmp_path, "a.jpg", "b.jpg")
    write(root / ".c.txt", "text")
    assert len(find_images(write(root / "t.csv", "path,label", "a.jpg,x", "b.jpg,y", ".c.txt,y")).samples) == 3


def test_paths_of_another_machine_come_from_one_place(tmp_path: Path) -> None:
    root = tree(tmp_path, "photos/cat/1.jpg", "cat/1.jpg", "cat/2.jpg")
    locator = Locator(root / "t.csv")
    assert locator.find("/home/ann/cat/2.jpg") == root / "cat/2.jpg"
    assert locator.find("/home/ann/photos/cat/1.jpg") == root / "photos/cat/1.jpg"
    assert locator.find("/home/ann/cat/3.jpg") is None
    assert locator.find(r"\\server\share\pets\cat\1.jpg") == root / "cat/1.jpg"
    below = re.escape(str(root))
    assert tell(locator.warnings(), f"2 paths .* /home/ann, .*{below}", f"1 path .* //server/share/pets, .*{below}")


@pytest.mark.parametrize(
    "name", ["x" * 5000, "a\0b", "~nobody", "/", "//", "C:", "", "..", "/../../x.jpg", "http://a/b"]
)
def test_odd_names_are_no_files(name: str, tmp_path: Path) -> None:
    locator = Locator(tree(tmp_path / "photos", "a.jpg") / "t.csv")
    found = locator.find(name)
    assert found is None or found.is_dir()


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_table_named_by_way_of_a_link(tmp_path: Path) -> None:
    root = tree(tmp_path / "real", "a.jpg", "b.jpg")
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    write(root / "t.csv", "path,label", f"{root / 'a.jpg'},x", f"{tmp_path / 'link' / 'b.jpg'},y")
    found = find_images(tmp_path / "link" / "t.csv")
    assert [found.relative(sample) for sample in found.samples] == ["a.jpg", "b.jpg"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_table_that_is_a_link(tmp_path: Path) -> None:
    root = tree(tmp_path / "real", "a.jpg", "b.jpg")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "t.csv").symlink_to(write(root / "t.csv", "path,label", "a.jpg,x", "b.jpg,y"))
    found = find_images(tmp_path / "tables" / "t.csv")
    assert [sample.path for sample in found.samples] == [root / "a.jpg", root / "b.jpg"]
    assert tell(found.warnings, f"2 paths .*{re.escape(str(root))}")


def test_an_id_is_the_path_only_where_nothing_else_is(tmp_path: Path) -> None:
    root = tree(tmp_path, "a.jpg", "b.JPG")
    for header in ("image_id,label", "id,label"):
        assert len(find_images(write(root / "t.csv", header, "a,x", "b,y")).samples) == 2
    found = find_images(write(root / "t.csv", "id,filepath,label", "b,a.jpg,x", "a,b.JPG,y"))
    assert [sample.path.name for sample in found.samples] == ["a.jpg", "b.JPG"]
    assert found.warnings == ()


def test_another_image_of_the_same_bare_name_is_not_taken(tmp_path: Path) -> None:
    root = tree(tmp_path, "cat/1.jpg", "dog/2.jpg", "7.jpg")
    rows = ("/home/ann/cat/1.jpg,cat", "/home/ann/dog/2.jpg,dog")
    assert len(find_images(write(root / "t.csv", "path,label", *rows, "/home/ann/7.jpg,dog")).samples) == 3
    with pytest.raises(DataError, match=r"t\.csv .* /home/ann, /y/q,"):
        find_images(write(root / "t.csv", "path,label", *rows, "/y/q/7.jpg,dog"))
