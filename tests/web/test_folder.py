"""The folder for a web host is complete, whole or absent, and harms no other files."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from pictures import save_picture
from runs import Listening

from carnet import Classifier
from carnet.errors import ConfigError, ModelFileError, OutputError
from carnet.text import Silent
from carnet.web import runtime
from carnet.web.folder import write_web_folder

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def dist(tmp_path: Path) -> Path:
    """Stand-ins for the runtime's files."""
    folder = tmp_path / "dist"
    folder.mkdir()
    for name in runtime.FILES:
        (folder / name).write_bytes(name.encode())
    return folder


def write(model: Path, folder: Path, dist: Path) -> None:
    write_web_folder(Classifier(model), folder, runtime.runtime_files(dist, Silent()))


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_everything_the_page_asks_for_is_there(exported: Path, dist: Path, tmp_path: Path) -> None:
    app = tmp_path / "my-app"
    write(exported, app, dist)
    page = (app / "index.html").read_text()
    version = re.search(r'data-version="(\w+)"', page)[1]  # type: ignore[index]
    asked = set(re.findall(r'(?:href|src)="([^"]+)"', page))
    listed = json.loads((app / "files.json").read_text())
    assert asked <= {*listed}
    kept = {name.partition("?")[0].replace("./", "index.html"): digest for name, digest in listed.items()}
    assert kept == {name: digest for name, digest in contents(app).items() if name not in ("sw.js", "files.json")}
    assert {name for name in listed if not name.endswith(f"?v={version}")} == {"manifest.webmanifest", "./"}
    assert {"ort/LICENSE", "ort/ThirdPartyNotices.txt"} <= set(contents(app))
    assert (app / "model.onnx").read_bytes() == exported.read_bytes()
    about = json.loads((app / "model.json").read_text())
    classifier = Classifier(exported)
    assert (about["classes"], about["threshold"]) == (list(classifier.classes), classifier.threshold)
    assert len(about["tests"]) == 2
    manifest = json.loads((app / "manifest.webmanifest").read_text())
    assert (manifest["name"], manifest["start_url"], manifest["scope"]) == ("my app", "./", "./")
    assert {icon["src"] for icon in manifest["icons"]} <= {*listed}


def test_nothing_names_another_host(exported: Path, dist: Path, tmp_path: Path) -> None:
    write(exported, tmp_path / "app", dist)
    ours = [path for path in (tmp_path / "app").glob("*") if path.suffix in (".html", ".js", ".css", ".webmanifest")]
    assert len(ours) == 7
    # The address that the page tells people to open is no request.
    assert not [path for path in ours if re.search(r"(https?:)?//(?!localhost)[\w.]+\.\w", path.read_text())]


def test_another_model_has_another_version(exported: Path, trained_run: Path, dist: Path, tmp_path: Path) -> None:
    write(exported, tmp_path / "a", dist)
    before = contents(tmp_path / "a")
    write(exported, tmp_path / "a", dist)
    assert contents(tmp_path / "a") == before
    (dist / "ort-wasm-simd-threaded.wasm").write_bytes(b"newer")
    write(exported, tmp_path / "a", dist)
    assert contents(tmp_path / "a")["files.json"] != before["files.json"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_with_other_files_is_left_alone(exported: Path, dist: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    save_picture(mine / "cat.png", (1, 2, 3), 0)
    before = contents(mine)
    with pytest.raises(OutputError, match=re.escape("cat.png")):
        write(exported, mine, dist)
    write(exported, tmp_path / "app", dist)
    (tmp_path / "app" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=re.escape("notes.txt")):
        write(exported, tmp_path / "app", dist)
    assert contents(mine) == before
    (tmp_path / "file").write_text("a file")
    with pytest.raises(OutputError):
        write(exported, tmp_path / "file", dist)


def test_what_a_folder_says_of_itself_makes_no_other_file_ours(exported: Path, dist: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    save_picture(tmp_path / "mine" / "cat.png", (1, 2, 3), 0)
    (tmp_path / "mine" / "files.json").write_text('{"cat.png": ""}')
    with pytest.raises(OutputError):
        write(exported, tmp_path / "mine", dist)
    assert (tmp_path / "mine" / "cat.png").exists()


@pytest.mark.parametrize("names", [("index.html",), ("index.html", "style.css", "files.json"), (".git/config",)])
def test_a_page_of_ones_own_is_left_alone(exported: Path, dist: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text("mine")
    with pytest.raises(OutputError, match="--web"):
        write(exported, tmp_path / "mine", dist)
    assert all((tmp_path / "mine" / name).read_text() == "mine" for name in names)


def test_an_incomplete_dist_is_named(exported: Path, dist: Path, tmp_path: Path) -> None:
    (dist / "ort-wasm-simd-threaded.wasm").unlink()
    with pytest.raises(ConfigError, match=re.escape("ort-wasm-simd-threaded.wasm")):
        write(exported, tmp_path / "app", dist)
    assert not (tmp_path / "app").exists()


def test_a_model_that_takes_opacity_is_refused(exported: Path, dist: Path, tmp_path: Path) -> None:
    classifier = Classifier(exported)
    object.__setattr__(classifier.spec, "in_channels", 4)
    with pytest.raises(ModelFileError):
        write_web_folder(classifier, tmp_path / "app", runtime.runtime_files(dist, Silent()))


def test_only_the_pinned_archive_is_taken(tmp_path: Path) -> None:
    def other(folder: Path) -> None:
        with tarfile.open(folder / f"{runtime.PACKAGE}-{runtime.VERSION}.tgz", "w:gz") as archive:
            for name in runtime.FILES:
                archive.addfile(tarfile.TarInfo(f"package/dist/{name}"), io.BytesIO())

    said = Listening()
    with pytest.raises(ConfigError, match="--ort-dist"):
        runtime.runtime_files(None, said, other)
    assert len(said.said) == 1


def test_without_npm_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="--ort-dist"):
        runtime.runtime_files(None, Silent())


def test_export_writes_the_folder(call: Call, trained_run: Path, dist: Path, tmp_path: Path) -> None:
    output, app = tmp_path / "model.onnx", tmp_path / "app"
    code, out, err = call("export", trained_run, "--output", output, "--web", app, "--ort-dist", dist, "--json")
    assert code == 0, err
    assert json.loads(out)["web"] == str(app)
    assert (app / "model.onnx").read_bytes() == output.read_bytes()
    assert "http.server" in err
    code, _, err = call("export", trained_run, "--output", output, "--ort-dist", dist)
    assert (code, "--web" in err) == (2, True)
    code, _, err = call("export", trained_run, "--output", output, "--web", app, "--ort-dist", tmp_path / "no")
    assert (code, "--ort-dist" in err) == (2, True)
    (app / "mine.txt").write_text("x")
    before = output.stat().st_mtime_ns
    code, _, err = call("export", trained_run, "--output", output, "--web", app, "--ort-dist", dist)
    assert (code, "mine.txt" in err, output.stat().st_mtime_ns) == (2, True, before)
