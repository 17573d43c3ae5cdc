"""What every request passes: the names that this machine is called by, the token, the log, the counters."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import logging
import socket
import time
from collections.abc import Collection
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from carnet.server.metrics import Metrics

log = logging.getLogger("carnet.server")
_LONGEST_PATH = 200
"""Characters of a path in the log, which anybody may make up."""
PROBES = ("/healthz", "/readyz")
"""Paths that tell whether the service works, and nothing else."""
OPEN_PATHS = ("/", "/page.js", "/style.css", "/icon.png", "/api", "/openapi.json")
"""Paths that need no token: of the model they tell no more than the number of classes."""


class JsonLines(logging.Formatter):
    """Write each record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        facts = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return json.dumps(facts)


@dataclass(frozen=True)
class Access:
    """Who may use the service.

    Attributes:
        hosts: names in the Host header that are accepted, besides those of this machine and IP addresses.
        token: what requests must bear; empty: none.
    """

    hosts: Collection[str] = ()
    token: str = field(default="", repr=False)

    def refusal(self, path: str, headers: Headers) -> JSONResponse | None:
        """Return the answer to a request that may not pass, or None.

        A web page elsewhere can let its own name point to this machine, and then read what a service here answers. The
        Host header still has that name, so only names of this machine are accepted. An IP address is no such name.
        """
        if path in PROBES:
            return None
        host, known = headers.get("host", ""), {*_own_names(), *map(str.lower, self.hosts)}
        name = host_name(host)
        if name is None or not (_is_address(name) or name in known):
            return JSONResponse({"error": "unknown name in Host; carnet serve --allowed-hosts allows it"}, 421)
        # A page elsewhere may send images, though not read the answers; that would still use the processor.
        site = headers.get("origin", f"http://{host}").partition("://")[2]
        if site != host and host_name(site) not in {*map(str.lower, self.hosts)}:
            return JSONResponse({"error": "this request comes from a page of another site"}, 403)
        if self.token and path not in OPEN_PATHS:
            kind, _, given = headers.get("authorization", "").partition(" ")
            # Digests have one length, and comparing them takes one time.
            digests = (hashlib.sha256(text.encode()).digest() for text in (given.strip(), self.token))
            if not hmac.compare_digest(*digests) or kind.lower() != "bearer":
                reason = "the token is wrong" if given else "a token is needed: Authorization: Bearer TOKEN"
                return JSONResponse({"error": reason}, 401, {"WWW-Authenticate": "Bearer"})
        return None


def host_name(header: str) -> str | None:
    """Return the name in a Host header, in lower case and without the port; None if it is none."""
    if header.startswith("["):
        name, bracket, port = header[1:].partition("]")
        if not bracket or (not port.startswith(":") and port):
            return None
        port = port[1:]
    else:
        name, _, port = header.partition(":")
    return name.lower().rstrip(".") or None if port.isdecimal() or not port else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _own_names() -> tuple[str, ...]:
    name = socket.gethostname().lower()
    return "localhost", name, f"{name.partition('.')[0]}.local"


@dataclass(frozen=True)
class Guard:
    """The outermost application: it refuses, counts and logs; images and their names are never logged."""

    app: ASGIApp
    access: Access
    metrics: Metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            answer = self.access.refusal(scope["path"], Headers(scope=scope)) or self.app
            await answer(scope, receive, watched)
        finally:
            seconds = time.perf_counter() - started
            self.metrics.observe(scope["path"], status, seconds)
            facts = {
                "client": (scope.get("client") or ["unknown"])[0],
                "method": scope["method"],
                "path": scope["path"][:_LONGEST_PATH],
                "status": status,
                "milliseconds": round(1000 * seconds, 2),
                "images": scope.get("carnet.images", 0),
            }
            log.info("request", extra={"facts": facts})
