"""Read the images out of a request, within limits; nothing is written to a disk."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from carnet.text import counted, show_bytes

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MULTIPART = "multipart/form-data"
_BINARY = ("", "application/octet-stream", "application/x-www-form-urlencoded")
"""Content types that say nothing about the content; curl claims the last one unless it is told."""
MAX_IMAGES = 64
"""Images in one request, if so many may wait."""
MAX_TOP_K = 1000
"""Classes that are named for each image."""
GONE = 499
"""The status in the log for a client that has left before its request was complete."""
RETRY_SECONDS = 1
"""What a client that is refused for lack of room is asked to wait."""


@dataclass(frozen=True)
class Limits:
    """What one client, and all of them together, may ask for.

    Attributes:
        max_bytes: the largest request, in bytes.
        max_waiting: images that are accepted and not yet answered, of all requests.
        seconds: the longest time for a request to arrive, and then for its answer.
    """

    max_bytes: int = 20 * 10**6
    max_waiting: int = 256
    seconds: float = 30.0

    @property
    def max_images(self) -> int:
        """Images in one request."""
        return min(MAX_IMAGES, self.max_waiting)

    @property
    def max_held_bytes(self) -> int:
        """Bytes of all requests that are in memory at one time: sixteen of the largest ones."""
        return 16 * self.max_bytes


@dataclass
class Admission:
    """Counts what is under way, and refuses what is too much with 503; used by the event loop alone."""

    limits: Limits
    num_images: int = 0
    num_bytes: int = 0

    @property
    def is_full(self) -> bool:
        """Whether the next image would be refused."""
        return self.num_images >= self.limits.max_waiting

    @contextmanager
    def request(self) -> Iterator[Held]:
        """Give the account of one request, and release at the end all that it holds."""
        if self.is_full:
            raise _busy(f"{counted(self.limits.max_waiting, 'image')} are waiting already")
        held = Held(self)
        try:
            yield held
        finally:
            self.num_images -= held.num_images
            self.num_bytes -= held.num_bytes


@dataclass
class Held:
    """What one request holds of an `Admission`."""

    admission: Admission
    num_images: int = field(default=0, init=False)
    num_bytes: int = field(default=0, init=False)

    def take_images(self, number: int) -> None:
        """Count further images, or raise 503."""
        if self.admission.num_images + number > self.admission.limits.max_waiting:
            raise _busy(f"{counted(self.admission.limits.max_waiting, 'image')} are waiting already")
        self.admission.num_images += number
        self.num_images += number

    def take_bytes(self, number: int) -> None:
        """Count further bytes, or raise 503."""
        if self.admission.num_bytes + number > self.admission.limits.max_held_bytes:
            raise _busy("other requests fill the memory")
        self.admission.num_bytes += number
        self.num_bytes += number


def _busy(why: str) -> HTTPException:
    return HTTPException(503, f"{why}; try again", {"Retry-After": str(RETRY_SECONDS)})


async def read_body(request: Request, held: Held) -> bytes:
    """Return the body of a request.

    Raises:
        HTTPException: 413 if it is larger than allowed, 408 if it takes too long, 503 if there is no room for it, 400
            if its length is no number, 415 if it is compressed.
    """
    limits = held.admission.limits
    too_large = HTTPException(413, f"more than {show_bytes(limits.max_bytes)}; send a smaller image, or fewer")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise HTTPException(415, "send the bytes as they are, without Content-Encoding")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal():
        raise HTTPException(400, "Content-Length must be a number")
    if int(length) > limits.max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.seconds):
            async for chunk in request.stream():
                if len(body) + len(chunk) > limits.max_bytes:
                    raise too_large
                held.take_bytes(len(chunk))
                body += chunk
    except ClientDisconnect:
        # Nobody reads this answer; the log shows it.
        raise HTTPException(GONE, "the client has gone") from None
    except TimeoutError:
        # What is still on its way would keep the connection.
        close = {"Connection": "close"}
        raise HTTPException(408, f"the request did not arrive within {limits.seconds:g} seconds", close) from None
    return bytes(body)


def images_of(content_type: str, body: bytes, most: int = MAX_IMAGES) -> list[tuple[str | None, bytes]]:
    """Return the name, if there is one, and the bytes of each image in a request.

    Args:
        content_type: an image's, application/octet-stream or none for a body that is one image; multipart/form-data
            for one that has an image in each part.
        body: the body of the request.
        most: the largest number of images.

    Raises:
        HTTPException: 415 for another content type; 400 if there is no image, or the parts cannot be read; 413 if there
            are too many.
    """
    kind, options = parse_options_header(content_type)
    name = kind.decode("latin-1")
    if name == MULTIPART:
        images = _parts(options.get(b"boundary", b""), body, most)
    elif name in _BINARY or name.startswith("image/"):
        images = [(None, body)]
    else:
        raise HTTPException(415, f"send the bytes of an image, or {MULTIPART} with images, not {name}")
    if not images or not any(content for _, content in images):
        raise HTTPException(400, "the request has no image")
    return images


def _parts(boundary: bytes, body: bytes, most: int) -> list[tuple[str | None, bytes]]:
    if not boundary:
        raise HTTPException(400, f"{MULTIPART} needs a boundary in Content-Type")
    form = _Form(most)
    try:
        MultipartParser(boundary, form.callbacks()).write(body)
    except FormParserError as error:
        raise HTTPException(400, f"the parts of the request cannot be read: {error}") from None
    if not form.is_complete:
        raise HTTPException(400, "the request ends in the middle of a part")
    return [(name or None, bytes(content)) for name, content in form.parts]


class _Form:
    """Collects the parts of a form as the parser finds them."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.parts: list[tuple[str, bytearray]] = []
        self.is_complete = False
        self._name, self._is_file = "", False
        self._field, self._value = bytearray(), bytearray()

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_content,
            "on_part_data": lambda data, start, end: self.parts[-1][1].extend(data[start:end]),
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) == self.most:
            raise HTTPException(413, f"more than {counted(self.most, 'image')} in one request")
        self._name, self._is_file = "", False

    def _end_header(self) -> None:
        if self._field.lower() == b"content-disposition":
            _, options = parse_options_header(self._value.decode("latin-1"))
            self._is_file = b"filename" in options
            self._name = options.get(b"filename", options.get(b"name", b"")).decode("utf-8", "replace")
        self._field.clear()
        self._value.clear()

    def _begin_content(self) -> None:
        if not self._is_file:
            raise HTTPException(400, f"the part {self._name!r} is no file; top_k and class belong to the query")
        self.parts.append((self._name, bytearray()))

    def _end(self) -> None:
        self.is_complete = True
