"""Pipes, devices and sparse files, archives with false or endless contents, and locked folders.

All commands run one after the other in one process, because importing takes longer than most of them. If one hangs, the
rows without an answer fail.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from children import started
from packing import CATS_AND_DOGS, IMAGE, images, write_tar
from pictures import save_picture

from carnet.data.find import find_images
from carnet.data.samples import read_ignore_file
from carnet.errors import DataError

PATIENCE = 180
"""Seconds for all commands together; they take a few."""
GB = 10**9
MAX_RSS = 2 * GB
"""Limit of memory in bytes, for PyTorch, a training run of eight small images, and 256 MB read at once."""
SCRIPT = """
import contextlib, io, json, re, sys
from pathlib import Path
from carnet.cli.main import run
for name, arguments in json.load(open(sys.argv[1])):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(arguments)
    # getrusage would include the process that started this one.
    status = Path("/proc/self/status")
    peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]) if status.exists() else 0
    print(json.dumps([name, [code, out.getvalue(), err.getvalue(), peak]]), flush=True)
"""
QUICK = ("--model", "carnet_n", "--image-size", "32", "--epochs", "1", "--batch-size", "4", "--compile", "off")
EVALUATE = ("evaluate", "run", "--output", "page.html")
ODD = ("pipe.jpg", "zero.jpg", "sparse.jpg")
"""Files among the images that are not images."""


@dataclass(frozen=True)
class Row:
    """A command in a folder with the data of `make`, and its expected result."""

    name: str
    command: tuple[str, ...]
    code: int
    err: tuple[str, ...] = ()
    """Patterns to find in its errors."""
    out: tuple[str, ...] = ()
    locked: bool = False
    """The command needs a folder that is locked."""


ROWS = [
    Row("train", ("train", "photos", *QUICK, "--output", "none"), 2, (*ODD, "3 of 15 images", "named pipe")),
    Row("train-without", ("train", "photos", *QUICK, "--output", "run", "--skip-unreadable"), 0),
    Row("evaluate", (*EVALUATE, "photos", "--split", "train"), 2, ODD),
    Row(
        "evaluate-without",
        (*EVALUATE, "photos", "--split", "train", "--skip-unreadable", "--json"),
        0,
        out=('"num_images": 8', '"num_skipped_unreadable": 3'),
    ),
    Row("table", (*EVALUATE, "table.csv", "--split", "all"), 2, ODD),
    Row(
        "table-without",
        (*EVALUATE, "table.csv", "--split", "all", "--skip-unreadable", "--json"),
        0,
        out=('"num_images": 2', '"num_skipped_unreadable": 3'),
    ),
    Row("predict", ("predict", "run", *(f"photos/train/red/{name}" for name in (*ODD, "0.png"))), 1, ODD, ("0.png: ",)),
    Row("predict-folder", ("predict", "run", "photos/train/red"), 1, ODD, ("0.png: ",)),
    Row("predict-pipe", ("predict", "run", "pipe.csv", "photos/train/red/0.png"), 1, ("pipe.csv",), ("0.png: ",)),
    Row("predict-pattern", ("predict", "run", "mixed/*"), 1, ("pipe.jpg: ", "gone.jpg: "), ("0.png: ",)),
    Row("stdin", ("predict", "run", "-"), 1, ("-: .*256 MB",)),
    Row("begun", ("train", "photos", *QUICK, "--output", "begun"), 2, ("begun",)),
    *(
        Row(f"ignore-{name}", (*EVALUATE, "photos", "--ignore", name), 2, (name,))
        for name in ("/dev/zero", "pipe.csv", "large.csv")
    ),
    Row("predict-ignore", ("predict", "run", "photos/train/red/0.png", "--ignore", "/dev/zero"), 2, ("/dev/zero",)),
    *(
        Row(f"data-{name}", (*EVALUATE, name), 2, (re.escape(name),))
        for name in (
            *("pipe.csv", "pipe.tar", "pipe.parquet", "/dev/zero", "large.csv"),
            *("shards/train", "shards/valid"),
        )
    ),
    Row("pattern-tar", (*EVALUATE, "shards/train/*.tar"), 2, ("shards/train/0.tar",)),
    Row("pattern-parquet", (*EVALUATE, "shards/valid/*.parquet"), 2, ("shards/valid/0.parquet",)),
    *(
        Row(f"model-{name}", ("predict", name, "photos/train/red/0.png"), 2, (name,))
        for name in ("pipe.onnx", "zero.onnx", "large.onnx")
    ),
    *(
        Row(name, command, code, ("[Pp]ermission",), locked=True)
        for name, command, code in (
            ("locked-data", (*EVALUATE, "locked/photos"), 2),
            ("locked-archive", (*EVALUATE, "locked/photos.zip"), 2),
            ("locked-shards", (*EVALUATE, "locked/*.tar"), 2),
            ("locked-shards-inside", (*EVALUATE, "half-locked"), 2),
            ("locked-class", (*EVALUATE, "classes"), 2),
            ("locked-table", (*EVALUATE, "locked.csv", "--split", "all"), 2),
            ("locked-ignore", (*EVALUATE, "photos", "--ignore", "locked/list.txt"), 2),
            ("locked-image", ("predict", "run", "locked/1.jpg"), 1),
            ("locked-images", ("predict", "run", "locked/*.jpg"), 2),
            ("locked-folder", ("predict", "run", "locked"), 2),
            ("locked-model", ("predict", "locked/model.onnx", "photos/train/red/0.png"), 2),
            ("locked-run", ("predict", "locked/run", "photos/train/red/0.png"), 2),
        )
    ),
]

pytestmark = pytest.mark.filterwarnings("error")
needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
OBEYS: list[str] | None = (
    []
    if not hasattr(os, "geteuid") or os.geteuid()
    else ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    if shutil.which("setpriv")
    else None
)
"""Prefix of a command that makes locked folders locked for root too; None where that is not possible."""


@dataclass
class Answers:
    """Results of the commands: exit code, output, errors, and the process's peak memory by then."""

    by_name: dict[str, tuple[int, str, str, int]] = field(default_factory=dict)
    end: str = ""


def make(root: Path) -> None:
    """Make the folder in which the commands run."""
    for number, label in enumerate(("blue", "red")):
        for split, count in (("train", 4), ("valid", 2)):
            for place in range(count):
                colour = (40 + 160 * number, 60, 200 - 160 * number)
                save_picture(root / "photos" / split / label / f"{place}.png", colour, 10 * place + number, (40, 40))
    red = root / "photos" / "train" / "red"
    for pipe in (
        red / "pipe.jpg",
        red / "pipe",
        *(root / f"pipe.{kind}" for kind in ("csv", "tar", "parquet", "onnx")),
    ):
        os.mkfifo(pipe)
    save_picture(root / "mixed" / "0.png", (40, 60, 200), 0, (40, 40))
    (root / "mixed" / "gone.jpg").symlink_to("/mnt/not-mounted.jpg")
    (root / "begun").mkdir()
    for pipe in (root / "mixed" / "pipe.jpg", root / "begun" / "data.csv"):
        os.mkfifo(pipe)
    for pipe in (root / "shards" / "train" / "0.tar", root / "shards" / "valid" / "0.parquet"):
        pipe.parent.mkdir(parents=True)
        os.mkfifo(pipe)
    for link in (red / "zero.jpg", root / "zero.onnx"):
        link.symlink_to("/dev/zero")
    for sparse, size in ((red / "sparse.jpg", 40 * GB), (root / "large.csv", 2 * GB), (root / "large.onnx", 40 * GB)):
        sparse.touch()
        os.truncate(sparse, size)
    # The beginning of a sparse file looks like a table.
    with (root / "large.csv").open("r+b") as file:
        file.write(b"filepath,label\n" * 100)
    names = [f"photos/train/red/{name},red" for name in (*ODD, "0.png")]
    (root / "table.csv").write_text("\n".join(("filepath,label", "photos/train/blue/0.png,blue", *names)))
    (root / "locked.csv").write_text("filepath,label\nphotos/train/blue/0.png,blue\nlocked/1.jpg,red\n")
    shutil.copytree(root / "photos" / "valid", root / "classes")
    write_tar(root / "half-locked" / "valid" / "0.tar", images("0.jpg", "0.cls"), packed="")
    for locked in (root / "locked", root / "half-locked" / "train", root / "classes" / "green"):
        locked.mkdir()
        locked.chmod(0)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    root = tmp_path_factory.mktemp("opening")
    (root / "half-locked" / "valid").mkdir(parents=True)
    make(root)
    (root / "rows.json").write_text(json.dumps([(row.name, row.command) for row in ROWS]))
    (root / "script.py").write_text(SCRIPT)
    with (
        Path("/dev/zero").open("rb") as zeros,
        started(
            [*(OBEYS or ()), sys.executable, "script.py", "rows.json"],
            cwd=root,
            stdin=zeros,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process,
    ):
        try:
            out, end = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired as error:
            out, end = (error.stdout or b"").decode(), f"it hung for {PATIENCE} seconds"
    return Answers({name: tuple(answer) for name, answer in map(json.loads, out.splitlines())}, end)


@needs_pipes
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_no_command_hangs_and_every_odd_file_is_named(row: Row, answers: Answers) -> None:
    if row.locked and OBEYS is None:
        pytest.skip("no folder can be locked for this user")
    assert row.name in answers.by_name, answers.end
    code, out, err, peak = answers.by_name[row.name]
    assert code == row.code, err
    assert all(re.search(pattern, err) for pattern in row.err), err
    assert all(re.search(pattern, out) for pattern in row.out), out
    assert "Traceback" not in err
    assert peak < MAX_RSS
    if row.locked:
        assert not re.search("no such|not there|no folder|no file|no run|damaged", err, re.IGNORECASE), err


def test_a_large_list_takes_little_memory(tmp_path: Path) -> None:
    """Rows of a table that name missing files, and empty lines of an ignore list."""
    (tmp_path / "table.csv").write_text("filepath,label\n" + "gone.jpg,cat\n" * 100_000)
    (tmp_path / "list.txt").write_text("\n" * 5_000_000 + "a.jpg\n")
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"100,000 of 100,000 .*line 6.* 99,995"):
            find_images(tmp_path / "table.csv")
        assert read_ignore_file(tmp_path / "list.txt") == ("a.jpg",)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def header(kind: bytes, content: bytes, size: int | None = None) -> bytes:
    """Make a header of a tar archive that describes the next member."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = kind, len(content) if size is None else size
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def record(keyword: str, value: str) -> bytes:
    """Make a record of a pax header."""
    length = len(f" {keyword}={value}\n".encode())
    while length != len(f"{length} {keyword}={value}\n".encode()):
        length = len(f"{length} {keyword}={value}\n".encode())
    return f"{length} {keyword}={value}\n".encode()


def with_headers(path: Path, headers: list[bytes]) -> Path:
    """Make a packed tar of cats and dogs, with the headers spread over its members."""
    archive = write_tar(path, images(*CATS_AND_DOGS), packed="")
    content = archive.read_bytes()
    members = [content[start : start + 1024] for start in range(0, 3072, 1024)]
    with gzip.open(path, "wb", compresslevel=1) as file:
        for place, member in enumerate(members):
            file.write(b"".join(headers[place::3]) + member)
        file.write(bytes(1024))
    return path


KINDS = {
    "long-name": (tarfile.GNUTYPE_LONGNAME, b"x"),
    "long-link": (tarfile.GNUTYPE_LONGLINK, b"x"),
    "pax": (tarfile.XHDTYPE, b""),
    "global": (tarfile.XGLTYPE, b""),
    "solaris": (tarfile.SOLARIS_XHDTYPE, b""),
}


@pytest.mark.parametrize("size", [2**20, 60_000], ids=["large", "many"])
@pytest.mark.parametrize("kind", KINDS)
def test_headers_of_archives_take_no_memory(kind: str, size: int, tmp_path: Path) -> None:
    code, letter = KINDS[kind]
    headers = [
        header(code, letter * size or record(f"comment{number}", "x" * size))
        for number in range(300 if size < 2**20 else 40)
    ]
    path = with_headers(tmp_path / "x.tar.gz", headers)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"x\.tar\.gz") as caught:
            find_images(path)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()
    assert "header" in str(caught.value)


def test_global_headers_are_forgotten(tmp_path: Path) -> None:
    """Python's own reader keeps the content of each, and copies it for each member."""
    member = {f"{label}/{number}.jpg": IMAGE + b"%d" % number for label in ("cat", "dog") for number in range(150)}
    content = write_tar(tmp_path / "plain", member, packed="").read_bytes()
    with gzip.open(tmp_path / "x.tar.gz", "wb", compresslevel=1) as file:
        for number in range(len(member)):
            said = b"".join(record(f"{number}-{place}", "x" * 90) for place in range(500))
            file.write(header(tarfile.XGLTYPE, said) + content[1024 * number : 1024 * (number + 1)])
        file.write(bytes(1024))
    tracemalloc.start()
    try:
        assert len(find_images(tmp_path / "x.tar.gz").samples) == 300
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "said",
    [
        b"99999 path=a\n",
        b"-5 path=a\n",
        b"0 path=a\n",
        b"x path=a\n",
        b"7" * 60_000,
        b"9 path" + b"=" * 60_000,
        record("size", "-1"),
        record("size", "1e9"),
        record("size", "9" * 5000),
        record("path", "../x.jpg"),
        record("path", "/x.jpg"),
        record("GNU.sparse.major", "1"),
        record("GNU.sparse.map", "0,1"),
    ],
    ids=lambda said: said[:20].decode(),
)
def test_headers_that_violate_the_format_are_refused(said: bytes, tmp_path: Path) -> None:
    begun = time.process_time()
    with pytest.raises(DataError, match=r"x\.tar\.gz"):
        find_images(with_headers(tmp_path / "x.tar.gz", [header(tarfile.XHDTYPE, said)]))
    assert time.process_time() - begun < 1


def test_valid_headers_are_understood(tmp_path: Path) -> None:
    """Long names in both forms, a comment, times, attributes of any bytes, and as many of them as tools write."""
    long = f"{'very ' * 30}long"
    headers = [
        header(tarfile.GNUTYPE_LONGLINK, b"target\0")
        + header(tarfile.GNUTYPE_LONGNAME, f"{long}/1.jpg".encode() + b"\0"),
        header(tarfile.XGLTYPE, record("comment", "0123abc"))
        + header(tarfile.XHDTYPE, record("SCHILY.xattr.user", "a=b\n5 c=d\n") + record("path", "käse/2.jpg")),
        header(tarfile.XHDTYPE, record("mtime", "1.5") + record("comment", "x" * 60_000)),
    ]
    found = find_images(with_headers(tmp_path / "x.tar.gz", headers))
    assert found.classes == ("dog", "käse", long)


def hidden(
    path: Path,
    parts: int,
    names: tuple[str, ...] = CATS_AND_DOGS,
    compress: Callable[[bytes], bytes] = bz2.compress,
) -> Path:
    """Make a packed tar with a hidden file of `parts` times 9 MB, in a few kilobytes."""
    info = tarfile.TarInfo(".hidden")
    info.size = 9 * 2**20 * parts
    members = write_tar(path, images(*names), packed="").read_bytes()[: 1024 * len(names)]
    with path.open("wb") as file:
        file.write(compress(members + info.tobuf()))
        file.write(compress(bytes(9 * 2**20)) * parts + compress(bytes(1024)))
    return path


def test_hidden_members_count_towards_the_limit(tmp_path: Path) -> None:
    assert len(find_images(hidden(tmp_path / "few.tar.bz2", 2)).samples) == 3
    path = hidden(tmp_path / "many.tar.bz2", 50)
    assert path.stat().st_size < 5000
    with pytest.raises(DataError, match=r"many\.tar\.bz2: .*hidden"):
        find_images(path)


def test_a_shard_is_read_up_to_the_limit(tmp_path: Path) -> None:
    """The whole tar has to be read to tell whether its folders or the texts beside the images are the classes."""
    names = ("cat/1.jpg", "cat/1.txt")
    path = hidden(tmp_path / "shard.tar", 50, names, gzip.compress)
    with pytest.raises(DataError, match=r"shard\.tar"):
        find_images(path)


def num_calls(work: Callable[[], object]) -> int:
    """Count function calls, a measure of work that does not depend on the clock."""
    number = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal number
        number += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return number


def test_many_entries_take_about_as_much_work_as_with_tarfile(tmp_path: Path) -> None:
    """Resolving the path of each member, with all folders above it, would take 1.5 times as much or more."""
    path = tmp_path / "many.tar"
    with tarfile.open(path, "w") as archive:
        for place in range(1_000):
            content = IMAGE + b"%d" % place
            info = tarfile.TarInfo(f"{'cat' if place % 2 else 'dog'}/{place}.jpg")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))

    def extract() -> None:
        with tarfile.open(path) as archive:
            archive.extractall(tmp_path / "extracted", filter="data")

    assert num_calls(lambda: find_images(path)) < 1.3 * num_calls(extract)
    assert len(find_images(path).samples) == 1_000
