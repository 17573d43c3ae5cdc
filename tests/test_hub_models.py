"""`carnet push`, and hf:OWNER/NAME as a model: against a small stand-in for the Hub on this machine."""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from children import finished
from stand_in import StandIn, listening

import carnet
from carnet.errors import ConfigError
from carnet.export.card import write_card
from carnet.hub_models import parse_name

SHA = "1" * 40


class Hub(StandIn):
    """Models are folders `root/OWNER/NAME`; nothing may be written for `closed`."""

    root: Path
    asked: list[str]

    def do_GET(self) -> None:  # noqa: N802
        path = unquote(urlparse(self.path).path)
        self.asked.append(f"{self.command} {path}")
        if match := re.fullmatch(r"/(\w+/[\w-]+)/resolve/([^/]+)/(.+)", path):
            name, revision, file = match.groups()
            code = ""
            if not (self.root / name).is_dir():
                code = "RepoNotFound"
            elif revision not in ("main", SHA):
                code = "RevisionNotFound"
            elif not (self.root / name / file).is_file():
                code = "EntryNotFound"
            if code:
                return self.answer({}, 401 if code == "RepoNotFound" else 404, X_Error_Code=code, X_Error_Message=code)
            return self.answer((self.root / name / file).read_bytes(), ETag=f'"{file}"', X_Repo_Commit=SHA)
        if path.startswith("/api/models/closed/"):
            return self.answer({}, 401, X_Error_Code="RepoNotFound", X_Error_Message="RepoNotFound")
        if match := re.fullmatch(r"/api/models/(\w+/[\w-]+)(/.*)?", path):
            return self.answer({"id": match[1], "sha": SHA, "siblings": [], "tags": [], "private": False})
        return self.answer({}, 404)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:  # noqa: N802
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlparse(self.path).path)
        self.asked.append(f"{self.command} {path}")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'owner'}/{asked['name']}"
            if name.startswith("closed/"):
                return self.answer({"error": "no"}, 403)
            (self.root / name).mkdir(parents=True, exist_ok=True)
            return self.answer({"url": f"http://{self.headers['Host']}/{name}", "id": name, "name": name})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if match := re.fullmatch(r"/api/models/(\w+/[\w-]+)/preupload/main", path):
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if match := re.fullmatch(r"/api/models/(\w+/[\w-]+)/commit/main", path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    (self.root / match[1] / line["value"]["path"]).write_bytes(
                        base64.b64decode(line["value"]["content"])
                    )
            url = f"http://{self.headers['Host']}/{match[1]}/commit/{SHA}"
            return self.answer({"success": True, "commitUrl": url, "commitOid": SHA})
        return self.answer({}, 404)


# The library reads its settings when it is imported, so a process starts with them.
SCRIPT = """
import contextlib, io, json, sys
from carnet.cli.main import run

ends = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(arguments)
    ends.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(ends))
"""
End = tuple[int, str, str]


def ended(address: str, cache: Path, *commands: list[object]) -> list[End]:
    """Run commands in one process whose Hub is at this address: exit code, standard output, standard error of each."""
    settings = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(cache), "HF_TOKEN": "hf_token"}
    words = json.dumps([[str(word) for word in command] for command in commands])
    process = finished([sys.executable, "-c", SCRIPT, words], check=True, env=os.environ | settings)
    return [tuple(end) for end in json.loads(process.stdout.splitlines()[-1])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def ends(folder: Path, trained_run: Path, photos: Path) -> dict[str, End]:
    """How the commands of all tests ended, with a stand-in for the Hub."""
    Hub.root, Hub.asked = folder / "hub", []
    (Hub.root / "owner" / "empty").mkdir(parents=True)
    write_card(trained_run, Hub.root / "owner" / "colours")
    photo, card = next(photos.rglob("*.jpg")), Hub.root / "owner" / "colours"
    small = ["--epochs", 1, "--batch-size", 8, "--lr", 1e-9, "--image-size", 48, "--compile", "off", "--model"]
    pinned = f"hf:owner/colours@{SHA}"
    commands: dict[str, list[object]] = {
        "push": ["push", trained_run, "owner/drawn-colours", "--private", "--license", "mit", "--json"],
        "predict": ["predict", "hf:owner/drawn-colours", photo, "--json"],
        "pinned": ["predict", pinned, photo],
        "again": ["predict", pinned, photo],
        "evaluate": ["evaluate", "hf:owner/colours", photos, "--output", folder / "page.html", "--json"],
        "init hub": ["train", photos, "--init", "hf:owner/colours", "--output", folder / "hub-run", *small, "carnet_n"],
        "init folder": ["train", photos, "--init", card, "--output", folder / "folder-run", *small, "carnet_n"],
        "init other": ["train", photos, "--init", "hf:owner/colours", "--output", folder / "no", *small, "carnet_s"],
        "nothing": ["predict", "hf:owner/nothing", photo],
        "no revision": ["predict", f"hf:owner/colours@{'2' * 40}", photo],
        "empty": ["predict", "hf:owner/empty", photo],
        "closed": ["push", trained_run, "closed/name"],
        "no name": ["push", trained_run, "no-owner"],
    }
    with listening(Hub) as address:
        return dict(zip(commands, ended(address, folder / "cache", *commands.values()), strict=True))


def test_push_and_predict(ends: dict[str, End], photos: Path) -> None:
    code, out, err = ends["push"]
    assert code == 0, err
    assert json.loads(out)["address"].endswith("/owner/drawn-colours")
    folder = Hub.root / "owner" / "drawn-colours"
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.onnx", "model.safetensors"}
    assert "license: mit" in (folder / "README.md").read_text()
    code, out, err = ends["predict"]
    assert code == 0, err
    (answer,) = json.loads(out)
    photo = next(photos.rglob("*.jpg"))
    assert answer["predictions"][0]["class"] == carnet.load(folder / "model.onnx").predict(photo).label


def test_a_model_of_the_hub_is_evaluated_and_kept(ends: dict[str, End]) -> None:
    code, out, err = ends["evaluate"]
    assert code == 0, err
    assert json.loads(out)["num_images"] == 12
    assert ends["pinned"][:2] == ends["again"][:2]
    # A revision that was named does not change, so it is asked for once.
    path = f"/owner/colours/resolve/{SHA}/model.onnx"
    assert (Hub.asked.count(f"HEAD {path}"), Hub.asked.count(f"GET {path}")) == (1, 1)


@pytest.mark.parametrize("kind", ["hub", "folder"])
def test_training_starts_from_it(ends: dict[str, End], folder: Path, kind: str) -> None:
    code, _, err = ends[f"init {kind}"]
    assert code == 0, err
    result = json.loads((folder / f"{kind}-run" / "result.json").read_text())
    assert result["best"]["valid_top1"] > 0.9
    record = json.loads((folder / f"{kind}-run" / "config.json").read_text())
    card = str((Hub.root / "owner" / "colours").resolve())
    assert record["init"] == ("hf:owner/colours" if kind == "hub" else card)
    code, _, err = ends["init other"]
    assert (code, "--model carnet_n" in err) == (2, True)


@pytest.mark.parametrize(
    ("command", "words"),
    [("nothing", "hf auth login"), ("no revision", "revision"), ("empty", "model.onnx"), ("no name", "OWNER/NAME")],
)
def test_what_is_not_there(ends: dict[str, End], command: str, words: str) -> None:
    code, _, err = ends[command]
    assert (code, len(err.splitlines()), words in err) == (2, 1, True)


def test_a_hub_that_is_not_reached(tmp_path: Path, photos: Path) -> None:
    photo = next(photos.rglob("*.jpg"))
    ((code, _, err),) = ended("http://127.0.0.1:9", tmp_path, ["predict", "hf:owner/name", photo])
    assert (code, len(err.splitlines()), "hf:owner/name cannot be reached" in err) == (2, 1, True)


def test_names() -> None:
    assert parse_name(Path("hf:owner/name")) == ("owner/name", None)
    assert parse_name("hf:owner\\name@v1") == ("owner/name", "v1")
    for name in ("hf:name", "hf:a/b/c", "hf:", "hf:../x/y", "hf:a b/c"):
        with pytest.raises(ConfigError, match="OWNER/NAME"):
            parse_name(name)


def test_a_repository_that_may_not_be_written(ends: dict[str, End]) -> None:
    code, _, err = ends["closed"]
    assert code == 2
    assert "token" in err.splitlines()[-1]
