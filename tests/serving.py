"""A service in a thread of the tests, and requests to it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

import uvicorn
from children import PATIENCE
from starlette.applications import Starlette


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)


@dataclass(frozen=True)
class Service:
    """The address of a service."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def ask(self, path: str, body: bytes | Iterator[bytes] | None = None, method: str = "", **headers: str) -> Answer:
        """Send a request on a connection of its own; `content_type=` is the header Content-Type."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, body, names)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()

    def predict(self, body: bytes, query: str = "", **headers: str) -> Answer:
        return self.ask(f"/v1/predict{query}", body, **headers)


@contextmanager
def running(app: Starlette, **settings: Any) -> Iterator[Service]:
    """Serve an application until the block ends, as `carnet serve` does."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(app, http="h11", ws="none", loop="asyncio", log_config=None, lifespan="on", **settings)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Service(listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


Started = tuple[subprocess.Popen[str], Service, dict[str, Any]]


@contextmanager
def served(*arguments: object, **environment: str) -> Iterator[Started]:
    """Start `carnet serve` as a shell does, and stop it at the end if it still runs."""
    words = [sys.executable, "-m", "carnet", "serve", *map(str, arguments), "--port", "0", "--json"]
    inherited = {name: value for name, value in os.environ.items() if name != "CARNET_TOKEN"}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=inherited | environment
    ) as process:
        assert process.stdout is not None
        try:
            text = ""
            while not text.endswith("}\n"):
                line = process.stdout.readline()
                assert line, process.communicate()[1]
                text += line
            document = json.loads(text)
            yield process, Service(int(re.search(r":(\d+)/$", document["url"])[1])), document  # type: ignore[index]
        finally:
            if process.poll() is None:
                process.terminate()
                process.communicate(timeout=PATIENCE)


def form(parts: Sequence[tuple[str, bytes]], boundary: str = "edge") -> tuple[bytes, str]:
    """Return a multipart body with a file in each part, and its content type."""
    lines = b"".join(
        b'--%s\r\nContent-Disposition: form-data; name="image"; filename="%s"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n%s\r\n" % (boundary.encode(), name.encode(), content)
        for name, content in parts
    )
    return lines + b"--%s--\r\n" % boundary.encode(), f"multipart/form-data; boundary={boundary}"
