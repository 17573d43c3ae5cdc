"""The service around one exported model, for any ASGI server; `carnet serve` runs it in uvicorn.

import carnet
from carnet.server.app import create_app

app = create_app(carnet.Classifier("model.onnx", threads=1))
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Never

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from carnet.edge.classifier import Classifier
from carnet.edge.selftest import Verification, verify
from carnet.errors import ConfigError, ImageError, ImageTooLargeError, ModelFileError, SelfTestError
from carnet.machine import loading_threads
from carnet.prediction import Prediction
from carnet.server import openapi
from carnet.server.batching import Batcher
from carnet.server.guards import Access, Guard
from carnet.server.metrics import CONTENT_TYPE, Metrics
from carnet.server.reading import (
    GONE,
    MAX_TOP_K,
    MULTIPART,
    RETRY_SECONDS,
    Admission,
    Held,
    Limits,
    images_of,
    read_body,
)
from carnet.web.page import HEADERS, api_html, page_files

MAX_BATCH = 32
MAX_WAIT = 0.003
"""Seconds that decoded images wait for others that are being decoded."""
_MAX_BATCH_BYTES, _MAX_WAITING_BYTES = 64 * 10**6, 512 * 10**6
"""What the decoded images of a batch, and all that wait, may take; networks with a large input get fewer images."""


class Json(JSONResponse):
    """JSON in ASCII, because the name of a class may hold bytes that are no text."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def create_app(
    classifier: Classifier,
    *,
    limits: Limits | None = None,
    access: Access | None = None,
    max_batch: int = MAX_BATCH,
) -> Starlette:
    """Return the service as an ASGI application.

    Args:
        classifier: an opened model file; its `max_pixels` limits images.
        limits: what clients may ask for; None: the defaults of `Limits`.
        access: who may use it; None: whoever reaches it under a name of this machine or an IP address.
        max_batch: the largest number of images that are computed together.

    Raises:
        SelfTestError: if the model does not reproduce the recorded answers for its own test images.
        ModelFileError: if it has no test images.
    """
    verification = verify(classifier)
    if not verification.passed:
        failed = ", ".join(check.picture for check in verification.checks if not check.passed)
        raise SelfTestError(
            f"{classifier.name} does not give the recorded answers for its own test images ({failed}); "
            "see carnet verify, and export it again with this version"
        )
    image_bytes = classifier.spec.image_size**2 * classifier.spec.in_channels
    limits, access = limits or Limits(), access or Access()
    limits = replace(limits, max_waiting=min(limits.max_waiting, max(1, _MAX_WAITING_BYTES // image_bytes)))
    max_batch = min(max_batch, max(1, _MAX_BATCH_BYTES // image_bytes))
    service = Service(classifier, verification, limits, max_batch)
    description = openapi.describe(limits, classifier.spec.num_classes, has_token=bool(access.token))
    files = {
        **page_files(classifier, says_classes=not access.token),
        "/openapi.json": ("application/json", json.dumps(description).encode()),
        "/api": ("text/html; charset=utf-8", api_html(description).encode()),
    }

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.batcher.close)

    app = Starlette(
        routes=[
            Route("/v1/predict", service.predict, methods=["POST"]),
            Route("/v1/explain", service.explain, methods=["POST"]),
            Route("/v1/model", service.model),
            Route("/healthz", service.health),
            Route("/readyz", service.ready),
            Route("/metrics", service.counters),
            *(Route(path, partial(_file, kind, content)) for path, (kind, content) in files.items()),
        ],
        middleware=[Middleware(Guard, access, service.metrics)],
        exception_handlers={
            HTTPException: _refused,
            MemoryError: _out_of_memory,
            Exception: _failed,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.classes = classifier.classes
    return app


class Service:
    """What the routes share."""

    def __init__(self, classifier: Classifier, verification: Verification, limits: Limits, max_batch: int) -> None:
        self.classifier, self.verification, self.limits = classifier, verification, limits
        self.name, self.digest = Path(classifier.name).name, hashlib.sha256(classifier.content).hexdigest()
        self.metrics = Metrics()
        self.admission = Admission(limits)
        self.metrics.waiting.set_function(lambda: self.admission.num_images)
        self.pool = ThreadPoolExecutor(loading_threads(), "carnet-decode")
        self.batcher = Batcher(
            classifier.load,
            classifier.probabilities,
            max_batch=max_batch,
            max_wait=MAX_WAIT,
            pool=self.pool,
            on_batch=self.metrics.batches.observe,
        )

    async def predict(self, request: Request) -> Response:
        """Classify the images of a request."""
        started = time.perf_counter()
        top_k = _top_k(request)
        with self.admission.request() as held:
            images = await self._images(request, held)
            answers = await self._answers(request, [content for _, content in images], top_k)
        errors = [answer for answer in answers if isinstance(answer, ImageError)]
        self.metrics.images.labels("unreadable").inc(len(errors))
        self.metrics.images.labels("classified").inc(len(answers) - len(errors))
        if len(errors) == len(answers):
            _raise_unreadable(errors)
        results = [_document(name, answer) for (name, _), answer in zip(images, answers, strict=True)]
        milliseconds = round(1000 * (time.perf_counter() - started), 2)
        return Json({"model": self.name, "results": results, "milliseconds": milliseconds})

    async def explain(self, request: Request) -> Response:
        """Draw where in an image a class is seen."""
        if self.classifier.map_centres is None:
            raise HTTPException(501, "the network has no class maps: its head is not a mean and a linear layer")
        label = request.query_params.get("class")
        with self.admission.request() as held:
            images = await self._images(request, held)
            if len(images) > 1:
                raise HTTPException(413, "send one image to be explained")
            loop = asyncio.get_running_loop()
            try:
                figure = await self._in_time(
                    request, loop.run_in_executor(self.pool, self._figure, images[0][1], label)
                )
            except ImageError as error:
                self.metrics.images.labels("unreadable").inc()
                _raise_unreadable([error])
            except ConfigError as error:
                raise HTTPException(400, str(error)) from error
        self.metrics.images.labels("explained").inc()
        return Response(figure, media_type="image/png")

    async def model(self, _: Request) -> Response:
        """Describe the model."""
        return Json(self.card())

    async def health(self, _: Request) -> Response:
        """Answer that the process lives."""
        return Json({"status": "alive"})

    async def ready(self, _: Request) -> Response:
        """Answer whether an image would be accepted."""
        if self.admission.is_full:
            raise HTTPException(503, "too much is under way", {"Retry-After": str(RETRY_SECONDS)})
        return Json({"status": "ready"})

    async def counters(self, _: Request) -> Response:
        """Return the counters."""
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    def card(self) -> dict[str, Any]:
        """Return what the model file says about itself, and how its self-test ended; no paths."""
        document, spec = self.classifier.document, self.classifier.spec
        return {
            "model": self.name,
            "network": spec.model,
            "classes": list(spec.classes),
            "image_size": spec.image_size,
            "resize": spec.resize,
            "interpolation": spec.interpolation,
            "threshold": self.classifier.threshold,
            "has_class_maps": self.classifier.map_centres is not None,
            "size_bytes": len(self.classifier.content),
            "sha256": self.digest,
            **{key: document.get(key) for key in ("arithmetic", "params", "metrics", "training", "versions")},
            "self_test": {**self.verification.to_json(), "model": self.name},
        }

    async def _images(self, request: Request, held: Held) -> list[tuple[str | None, bytes]]:
        """Read the images of a request, and count them."""
        body = await read_body(request, held)
        kind = request.headers.get("content-type", "")
        # Searching a large form for its parts takes time.
        find = partial(images_of, kind, body, self.limits.max_images)
        images = await run_in_threadpool(find) if kind.startswith(MULTIPART) else find()
        held.take_images(len(images))
        request.scope["carnet.images"] = len(images)
        return images

    async def _answers(self, request: Request, contents: Sequence[bytes], top_k: int) -> list[Prediction | ImageError]:
        futures = [asyncio.wrap_future(self.batcher.submit(content)) for content in contents]
        # An image that cannot be decoded is one of the answers.
        rows = await self._in_time(request, asyncio.gather(*futures, return_exceptions=True))
        answers: list[Prediction | ImageError] = []
        for row in rows:
            if isinstance(row, BaseException) and not isinstance(row, ImageError):
                raise row
            answers.append(row if isinstance(row, ImageError) else self.classifier.to_prediction(row, top_k))
        return answers

    async def _in_time(self, request: Request, work: asyncio.Future[Any]) -> Any:
        """Wait for some work, unless it takes too long or the client goes; then it is cancelled."""
        gone = asyncio.ensure_future(request.receive())
        try:
            await asyncio.wait({work, gone}, timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            work.cancel()
            if gone.done():
                raise HTTPException(GONE, "the client has gone")
            raise HTTPException(504, f"no answer within {self.limits.seconds:g} seconds")
        finally:
            gone.cancel()
            # An error of the work refers to this function, and would keep the images.
            del work

    def _figure(self, content: bytes, label: str | None) -> bytes:
        png = io.BytesIO()
        self.classifier.explain(content, label, top_k=1).figure.save(png, "PNG", compress_level=1)
        return png.getvalue()


def _top_k(request: Request) -> int:
    text = request.query_params.get("top_k", "5")
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= MAX_TOP_K):
        raise HTTPException(400, f"top_k must be a whole number between 1 and {MAX_TOP_K:,}")
    return int(text)


def _document(name: str | None, answer: Prediction | ImageError) -> Mapping[str, Any]:
    if isinstance(answer, ImageError):
        return {"name": name, "error": answer.reason}
    return {"name": name, "predictions": answer.to_json(), "confident": answer.is_confident}


def _raise_unreadable(errors: Sequence[ImageError]) -> Never:
    if any(isinstance(error.__cause__, MemoryError) for error in errors):
        raise HTTPException(503, "not enough memory to decode it; try again", {"Retry-After": str(RETRY_SECONDS)})
    is_too_large = any(isinstance(error, ImageTooLargeError) for error in errors)
    raise HTTPException(413 if is_too_large else 422, "; ".join(dict.fromkeys(error.reason for error in errors)))


async def _file(kind: str, content: bytes, _: Request) -> Response:
    return Response(content, media_type=kind, headers=HEADERS)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return Json({"error": error.detail}, error.status_code, error.headers)


async def _out_of_memory(_: Request, __: Exception) -> Response:
    return Json({"error": "not enough memory; try again"}, 503, {"Retry-After": str(RETRY_SECONDS)})


async def _failed(_: Request, error: Exception) -> Response:
    # Starlette raises the error again, and the server logs it.
    reason = "the model file is damaged" if isinstance(error, ModelFileError) else "the service failed"
    return Json({"error": f"{reason}; its log says why"}, 500)
