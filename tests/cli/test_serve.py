"""`carnet serve`: starts only what can be served, says where, and ends when told."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from children import PATIENCE
from serving import served

from carnet.cli.serve import Command

Call = Callable[..., tuple[int, str, str]]


on_posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals for other processes")


@on_posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal(exported: Path, photos: Path, number: signal.Signals) -> None:
    photo = next(photos.rglob("*.jpg")).read_bytes()
    with served(exported) as (process, service, document):
        assert document["classes"] == ["blue", "green", "red"]
        assert service.predict(photo, host="localhost").status == 200
        assert service.predict(b"no image", host="localhost").status == 422
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    lines = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    assert [(line["path"], line["status"], line["images"]) for line in lines] == [
        ("/v1/predict", 200, 1),
        ("/v1/predict", 422, 1),
    ]
    assert "Traceback" not in errors


@on_posix
def test_a_run_is_exported_first_by_another_process(trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    with served(run) as (process, service, _):
        assert (run / "model.onnx").is_file()
        assert service.ask("/v1/model", host="localhost").json["model"] == "model.onnx"
        if Path(f"/proc/{process.pid}/maps").exists():
            assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
        process.terminate()
        _, errors = process.communicate(timeout=PATIENCE)
    assert "gate" in errors
    assert "top-1" in errors


def test_a_token_from_the_environment_or_a_file(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("file-token\n")
    for flags, variable, token in (
        ((), "env-token", "env-token"),
        (("--token-file", tmp_path / "token"), "x", "file-token"),
    ):
        with served(exported, *flags, CARNET_TOKEN=variable) as (_, service, _):
            assert service.ask("/v1/model", host="localhost").status == 401
            assert service.ask("/v1/model", host="localhost", authorization=f"Bearer {token}").status == 200


def test_what_cannot_be_served(call: Call, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").write_text("\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for flags, named in (
            (["--port", port], "--port"),
            (["--port", 70000], "--port"),
            (["--host", "no.such.host.invalid"], "--host"),
            (["--max-bytes", "many"], "--max-bytes"),
            (["--max-pixels", 0, "--port", 0], "--max-pixels"),
            (["--allowed-hosts", "https://photos.example"], "--allowed-hosts"),
            (["--threads", -1], "--threads"),
            (["--queue", 0], "--queue"),
            (["--timeout", 0], "--timeout"),
            (["--max-batch", 0], "--max-batch"),
            (["--token-file", tmp_path / "missing"], "--token-file"),
            (["--token-file", tmp_path / "empty"], "--token-file"),
        ):
            code, out, err = call("serve", exported, *flags)
            assert (code, out) == (2, ""), err
            assert named in err
            assert len(err.splitlines()) == 1
    monkeypatch.setenv("CARNET_TOKEN", "")
    code, _, err = call("serve", exported)
    assert (code, "CARNET_TOKEN" in err) == (2, True)


def test_missing_and_foreign_models(call: Call, tmp_path: Path) -> None:
    (tmp_path / "other.onnx").write_bytes(b"nothing")
    for model in (tmp_path / "missing.onnx", tmp_path / "other.onnx", tmp_path):
        code, _, err = call("serve", model, "--port", 0)
        assert code == 2
        assert str(model) in err


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for a browser is a shell script")
def test_threads_runtime_and_open(exported: Path, photos: Path, tmp_path: Path) -> None:
    """The browser is a program that writes down what it is given."""
    opened = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o755)
    flags = ("--threads", 2, "--runtime", "openvino", "--open")
    with served(exported, *flags, BROWSER=str(browser)) as (_, service, document):
        assert service.predict(next(photos.rglob("*.jpg")).read_bytes(), host="localhost").status == 200
        while not opened.exists() or not opened.read_text():
            pass
        assert opened.read_text().strip() == document["url"]


def test_answers_are_sent_at_once(exported: Path) -> None:
    """asyncio lets the body of an answer wait for the client, 40 ms, unless the socket names its protocol."""
    with Command(exported, port=0)._bound() as listening:
        assert listening.proto == socket.IPPROTO_TCP
