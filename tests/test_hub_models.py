"""`carnet push`, and hf:OWNER/NAME as a model: against a small stand-in for the Hub on this machine."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest
from runs import small

import carnet
from carnet.errors import ConfigError, HubError, RunError
from carnet.export.card import write_card
from carnet.hub_models import fetch, parse_name
from carnet.training.run import train

Call = Callable[..., tuple[int, str, str]]
SHA = "1" * 40


class Hub(BaseHTTPRequestHandler):
    """Models are folders `root/OWNER/NAME`; nothing may be written for `closed`."""

    root: Path
    asked: list[str]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.asked.append(path)
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

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlparse(self.path).path)
        self.asked.append(path)
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


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A hub on this machine; gives the folder of its models."""
    Hub.root, Hub.asked = tmp_path / "hub", []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield Hub.root
    server.shutdown()
    server.server_close()


@pytest.fixture
def pushed(hub: Path, trained_run: Path) -> Path:
    """A run that is on the hub."""
    write_card(trained_run, hub / "owner" / "colours")
    return hub


def test_push_and_predict(call: Call, hub: Path, trained_run: Path, photos: Path) -> None:
    code, out, err = call("push", trained_run, "owner/drawn-colours", "--private", "--license", "mit", "--json")
    assert code == 0, err
    assert json.loads(out)["address"].endswith("/owner/drawn-colours")
    folder = hub / "owner" / "drawn-colours"
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.onnx", "model.safetensors"}
    assert "license: mit" in (folder / "README.md").read_text()
    photo = next(photos.rglob("*.jpg"))
    code, out, err = call("predict", "hf:owner/drawn-colours", photo, "--json")
    assert code == 0, err
    (answer,) = json.loads(out)
    assert answer["predictions"][0]["class"] == carnet.load(folder / "model.onnx").predict(photo).label


def test_a_model_of_the_hub_is_evaluated_and_kept(pushed: Path, photos: Path) -> None:
    model = carnet.load(f"hf:owner/colours@{SHA}")
    assert model.evaluate(photos).num_images == 12
    asked = len(Hub.asked)
    assert carnet.load(f"hf:owner/colours@{SHA}").classes == model.classes
    # A revision that was named does not change, so it is not even asked for.
    assert len(Hub.asked) == asked


@pytest.mark.parametrize("kind", ["hub", "folder"])
def test_training_starts_from_it(pushed: Path, photos: Path, tmp_path: Path, kind: str) -> None:
    source = "hf:owner/colours" if kind == "hub" else str(pushed / "owner" / "colours")
    model = carnet.train(photos, small(epochs=1, lr=1e-9), init=source, output=tmp_path / "run")
    assert model.result.top1 > 0.9
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["init"] == (source if kind == "hub" else str(Path(source).resolve()))
    with pytest.raises(RunError, match="--model carnet_n"):
        train(photos, small(model="carnet_s"), init=source, output=tmp_path / "other")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf:owner/nothing", "hf auth login"),
        (f"hf:owner/colours@{'2' * 40}", "revision"),
        ("hf:owner/empty", "model.onnx"),
    ],
)
def test_what_is_not_there(pushed: Path, name: str, words: str, call: Call, photos: Path) -> None:
    (pushed / "owner" / "empty").mkdir()
    with pytest.raises(HubError, match=re.escape(words)):
        carnet.load(name)
    code, _, err = call("predict", name, next(photos.rglob("*.jpg")))
    assert (code, len(err.splitlines())) == (2, 1)


def test_a_hub_that_is_not_reached(monkeypatch: pytest.MonkeyPatch, hub: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(HubError):
        fetch("hf:owner/name", "model.onnx")


def test_names(call: Call, trained_run: Path) -> None:
    assert parse_name(Path("hf:owner/name")) == ("owner/name", None)
    assert parse_name("hf:owner\\name@v1") == ("owner/name", "v1")
    for name in ("hf:name", "hf:a/b/c", "hf:", "hf:../x/y", "hf:a b/c"):
        with pytest.raises(ConfigError, match="OWNER/NAME"):
            parse_name(name)
    code, _, err = call("push", trained_run, "no-owner")
    assert (code, "OWNER/NAME" in err) == (2, True)


def test_a_repository_that_may_not_be_written(call: Call, hub: Path, trained_run: Path) -> None:
    code, _, err = call("push", trained_run, "closed/name")
    assert code == 2
    assert "token" in err.splitlines()[-1]
