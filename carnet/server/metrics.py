"""Counters of the service, in Prometheus's text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE

PATHS = ("/v1/predict", "/v1/explain", "/v1/model")
"""Paths that are counted by name; a path that anybody may make up would fill the memory."""
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)

__all__ = ["CONTENT_TYPE", "Metrics"]


class Metrics:
    """The counters of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "carnet_requests", "Requests that were answered", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "carnet_request_seconds",
            "Time from the first byte of a request to the last of its answer",
            ["path"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.images = Counter("carnet_images", "Images that were received", ["outcome"], registry=self.registry)
        self.batches = Histogram(
            "carnet_batch_images", "Images that were computed together", buckets=_IMAGES, registry=self.registry
        )
        self.waiting = Gauge("carnet_images_waiting", "Images that are not answered yet", registry=self.registry)

    def observe(self, path: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        path = path if path in PATHS else "other"
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """Return all counters as Prometheus reads them."""
        return generate_latest(self.registry)
