"""`carnet serve`: answer over HTTP, with a page for people."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import webbrowser
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from carnet.cli.main import console, print_json, words
from carnet.errors import ConfigError, RunError, StoppedError
from carnet.preprocess import MAX_PIXELS
from carnet.run_folder import RunFolder
from carnet.text import parse_bytes, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    import uvicorn
    from starlette.applications import Starlette

TOKEN_VARIABLE = "CARNET_TOKEN"
_MAX_CONNECTIONS = 1000
"""Open connections; those that send nothing count as well."""
_KEEP_ALIVE = 75
"""Seconds after which an unused connection is closed; clients and proxies close theirs after a minute or less."""


@dataclass(frozen=True)
class Command:
    """Answer over HTTP: an interface for programs, and a page for people at the same address.

    MODEL is a .onnx file written by carnet export, or the folder of a run, which is exported first. The service needs
    no PyTorch. It starts only if the model gives the recorded answers for its own test images (exit code 1 otherwise),
    writes one line of JSON about each request on standard error, and keeps no image. Ctrl-C and SIGTERM finish what was
    accepted.

    Examples:
      carnet serve model.onnx
      carnet serve runs/photos-carnet_s --open
      CARNET_TOKEN=secret carnet serve model.onnx --host 0.0.0.0
      curl --data-binary @photo.jpg http://127.0.0.1:8000/v1/predict
    """

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A .onnx file, or the folder of a training run."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    open: bool = False
    """Open the page in this machine's browser."""
    token_file: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """File whose first line is the token that requests must bear; CARNET_TOKEN is used without it."""
    allowed_hosts: Annotated[str, tyro.conf.arg(metavar="NAME,...")] = ""
    """Further names of this machine, as requests and pages of other sites may use them."""
    threads: int = 1
    """Number of compute threads for a batch; 0 lets the runtime choose. Images are decoded on other threads."""
    runtime: Literal["onnxruntime", "openvino"] = "onnxruntime"
    """Runtime that computes."""
    max_batch: int = 32
    """Most images that are computed together."""
    queue: int = 256
    """Most images that wait; further requests get 503."""
    max_bytes: Annotated[str, tyro.conf.arg(metavar="SIZE")] = "20MB"
    """Largest request."""
    max_pixels: int = 50_000_000
    """Largest image; decoding takes up to about 14 bytes a pixel."""
    timeout: float = 30.0
    """Most seconds for a request to arrive, and then for its answer."""
    json: bool = False
    """Print the address and the model as one JSON document when the service is ready."""

    def run(self) -> int:
        import uvicorn

        self._check()
        token = self._token()
        with self._bound() as listening:
            url = _url(listening)
            app = self._app(url, token)
            # From here on connections wait instead of being refused.
            with self._explained():
                listening.listen(_MAX_CONNECTIONS)
            if self.json:
                print_json({"url": url, "model": str(self.model), "classes": list(app.state.classes)})
                sys.stdout.flush()
            if self.open:
                # A browser in the terminal ends only when it is closed.
                threading.Thread(target=webbrowser.open, args=[url], daemon=True).start()
            server = uvicorn.Server(self._settings(app))
            with _logging(), _stopping(server):
                server.run(sockets=[listening])
        return 0

    def _app(self, url: str, token: str) -> Starlette:
        """Open the model, and return the service around it."""
        from carnet.edge.classifier import Classifier
        from carnet.server.app import create_app
        from carnet.server.guards import Access
        from carnet.server.reading import Limits

        with console(self.json) as progress:
            model = self.model
            if model.is_dir():
                RunFolder.open(model)
                progress.say(f"Exports {model} through the gate first (a .onnx file starts at once) …")
                model = _exported(model)
            app = create_app(
                Classifier(model, threads=self.threads, runtime=self.runtime, max_pixels=self.max_pixels),
                limits=Limits(parse_bytes(self.max_bytes, "--max-bytes"), self.queue, self.timeout),
                access=Access(words(self.allowed_hosts), token),
                max_batch=self.max_batch,
            )
            progress.say(f"{model} gives the recorded answers for its test images.")
            progress.say(f"The page is {url} (Ctrl-C stops the service).")
            if not token and not _is_loopback(self.host):
                progress.say(
                    f"Note: whoever reaches {self.host} may use it; {TOKEN_VARIABLE} or --token-file makes it ask for "
                    "a token."
                )
        return app

    def _settings(self, app: Starlette) -> uvicorn.Config:
        import uvicorn

        return uvicorn.Config(
            app,
            # This parser limits the size of headers.
            http="h11",
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_keep_alive=_KEEP_ALIVE,
            # Longer than a request may take.
            timeout_graceful_shutdown=int(2 * self.timeout) + 5,
        )

    def _check(self) -> None:
        for flag, number, low, high in (
            ("--port", self.port, 0, 65535),
            ("--max-batch", self.max_batch, 1, 1024),
            ("--queue", self.queue, 1, 100_000),
            ("--timeout", self.timeout, 0.1, 3600),
            ("--max-pixels", self.max_pixels, 1, MAX_PIXELS),
            ("--threads", self.threads, 0, 1024),
        ):
            if not low <= number <= high:
                raise ConfigError(f"{flag} must be between {low:,} and {high:,}, got {number:,}")
        parse_bytes(self.max_bytes, "--max-bytes")
        from carnet.server.guards import host_name

        for name in words(self.allowed_hosts):
            if host_name(name) != name.lower():
                raise ConfigError(f"--allowed-hosts takes names such as photos.example.org, got {name}")

    def _token(self) -> str:
        if self.token_file is None:
            token, source = os.environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE
            if token is None:
                return ""
        else:
            from carnet import files

            source = f"--token-file {self.token_file}"
            try:
                with files.open_text(self.token_file) as file:
                    token = file.readline()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"cannot read {source}: {getattr(error, 'strerror', None) or error}") from error
        token = token.strip()
        if not token:
            raise ConfigError(f"{source} is empty; leave it out, or give a token")
        if not token.isascii() or not token.isprintable() or " " in token:
            raise ConfigError(f"{source} must be a token of letters, digits and signs, without blanks")
        return token

    def _bound(self) -> socket.socket:
        """Take the address before long work, so that a port in use is told at once; nothing listens yet."""
        try:
            ((family, kind, protocol, _, address), *_) = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            # With the protocol, asyncio sends an answer's head and body at once; otherwise the body waits for 40 ms.
            listening = socket.socket(family, kind, protocol)
        except (OSError, UnicodeError) as error:
            raise ConfigError(
                f"--host {self.host} is no address of this machine; write it without http:// and port"
            ) from error
        try:
            if os.name == "posix":
                # A port that was left a moment ago is free; on Windows this would share it.
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with self._explained():
                listening.bind(address)
        except ConfigError:
            listening.close()
            raise
        return listening

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = f"cannot listen on {self.host}, port {self.port} ({error.strerror})"
            if error.errno == errno.EADDRNOTAVAIL:
                raise ConfigError(f"{reason}; --host must be an address of this machine") from error
            raise ConfigError(f"{reason}; choose another --port, or 0 for a free one") from error


def _exported(model: Path) -> Path:
    """Export a run by a process of its own, so that this one stays free of PyTorch, and return the file."""
    # What it says goes to standard error, because standard output may hold one JSON document.
    command = [sys.executable, "-m", "carnet", "export", str(model)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2) as exporting, _stopped_with(exporting):
        code = exporting.wait()
    if code == -signal.SIGTERM:
        raise StoppedError("stopped", signal.SIGTERM)
    if code:
        error = RunError(f"{model} is not served: its export failed; see above, and carnet export {quoted(model)}")
        error.exit_code = code if code in (1, 2) else 2
        raise error
    return model / "model.onnx"


@contextmanager
def _stopped_with(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Let SIGTERM end a process that this one waits for, instead of this one alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def _logging() -> Iterator[None]:
    """Write the service's log, and all warnings, as lines of JSON on standard error."""
    from carnet.server.guards import JsonLines, log

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    # What a form of a request lacks is told in its answer.
    levels = {log: logging.INFO, logging.getLogger("python_multipart"): logging.ERROR}
    before = {logger: logger.level for logger in levels}
    for logger, level in levels.items():
        logger.setLevel(level)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        for logger, level in before.items():
            logger.setLevel(level)


@contextmanager
def _stopping(server: uvicorn.Server) -> Iterator[None]:
    """Let a signal end the server, which finishes what it has accepted; the process goes on and ends by itself.

    While the server runs, it has handlers of its own, and raises the signal once more when it has finished.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
