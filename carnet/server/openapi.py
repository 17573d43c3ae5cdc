"""The description of the service in OpenAPI 3.1, from which clients and tests can be made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import carnet
from carnet.server.reading import MAX_TOP_K, MULTIPART, Limits
from carnet.text import show_bytes

_TEXT, _NUMBER, _FLAG = {"type": "string"}, {"type": "number"}, {"type": "boolean"}
_ERRORS = {
    400: "The request cannot be read",
    401: "The token is missing or wrong",
    403: "A page of another site asks",
    408: "The request did not arrive in time",
    413: "Too many bytes, pixels or images",
    415: "Another content type than that of images",
    421: "The Host header has an unknown name",
    422: "No image could be decoded",
    503: "Too much is under way; Retry-After says when to try again",
    504: "The answer was not ready in time",
}
_OF_IMAGES, _OF_ALL = tuple(_ERRORS), (401, 403, 421)


def describe(limits: Limits, num_classes: int, *, has_token: bool) -> dict[str, Any]:
    """Return the description."""
    numbers = {"type": "integer", "minimum": 1, "maximum": MAX_TOP_K, "default": 5}
    top_k = _parameter("top_k", "The number of classes to name", numbers)
    label = _parameter("class", "The class to show; without it, the most probable one", _TEXT)
    predict = {
        "summary": "Classify images",
        "description": f"One image as the body, or up to {limits.max_images} as the parts of a form; at most "
        f"{show_bytes(limits.max_bytes)} in all.",
        "parameters": [top_k],
        "requestBody": _images(limits.max_images),
        "responses": _answers(_json("Predictions, in the order of the images", "Predictions"), _OF_IMAGES),
    }
    explain = {
        "summary": "Show where in an image a class is seen",
        "parameters": [label],
        "requestBody": _images(1),
        "responses": _answers(
            {"description": "The image in grey, with heat where the class is seen", "content": _file("image/png")},
            (*_OF_IMAGES, 501),
        ),
    }
    card = {
        "summary": "Describe the model",
        "responses": _answers(_json("Classes, size, accuracy, self-test", "Model"), _OF_ALL),
    }
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "carnet serve",
            "version": carnet.__version__,
            "description": f"An image classifier with {num_classes:,} classes.",
        },
        "paths": {
            "/v1/predict": {"post": {"operationId": "predict", **predict}},
            "/v1/explain": {"post": {"operationId": "explain", **explain}},
            "/v1/model": {"get": {"operationId": "model", **card}},
            "/healthz": {"get": _probe("alive", "Whether the process answers", {})},
            "/readyz": {"get": _probe("ready", "Whether images are accepted", {503: "Too much is under way"})},
            "/metrics": {
                "get": {
                    "operationId": "metrics",
                    "summary": "Count requests, images and times, in Prometheus's text format",
                    "responses": _answers({"description": "The counters", "content": _file("text/plain")}, _OF_ALL),
                }
            },
        },
        "components": {"schemas": _SCHEMAS},
    }
    if has_token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _parameter(name: str, description: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _file(kind: str) -> dict[str, Any]:
    return {kind: {}}


def _images(most: int) -> dict[str, Any]:
    part = {"type": "string", "contentMediaType": "application/octet-stream"}
    form = {"type": "array", "items": part, "minItems": 1, "maxItems": most}
    kinds = ("application/octet-stream", "image/jpeg", "image/png", "image/webp")
    properties = {"type": "object", "properties": {"image": form}, "required": ["image"]}
    return {"required": True, "content": {**{kind: {} for kind in kinds}, MULTIPART: {"schema": properties}}}


def _json(description: str, schema: str) -> dict[str, Any]:
    content = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
    return {"description": description, "content": {"application/json": content}}


def _answers(good: Mapping[str, Any], errors: tuple[int, ...]) -> dict[str, Any]:
    texts = {**_ERRORS, 501: "The network has no class maps"}
    return {"200": good, **{str(code): _json(texts[code], "Error") for code in errors}}


def _probe(name: str, summary: str, errors: Mapping[int, str]) -> dict[str, Any]:
    state = {"type": "object", "properties": {"status": _TEXT}, "required": ["status"]}
    good = {"description": "Yes", "content": {"application/json": {"schema": state}}}
    answers = {"200": good} | {str(code): _json(text, "Error") for code, text in errors.items()}
    return {"operationId": name, "summary": summary, "security": [], "responses": answers}


_SCHEMAS = {
    "Error": {"type": "object", "properties": {"error": _TEXT}, "required": ["error"]},
    "Class": {
        "type": "object",
        "properties": {"class": _TEXT, "probability": {"type": "number", "minimum": 0, "maximum": 1.001}},
        "required": ["class", "probability"],
    },
    "Result": {
        "type": "object",
        "description": "What one image shows, the most probable class first; or why it cannot be decoded.",
        "properties": {
            "name": {"type": ["string", "null"]},
            "predictions": {"type": "array", "items": {"$ref": "#/components/schemas/Class"}},
            "confident": {"type": ["boolean", "null"], "description": "Whether the first reaches the threshold."},
            "error": _TEXT,
        },
        "required": ["name"],
    },
    "Predictions": {
        "type": "object",
        "properties": {
            "model": _TEXT,
            "results": {"type": "array", "items": {"$ref": "#/components/schemas/Result"}},
            "milliseconds": _NUMBER,
        },
        "required": ["model", "results", "milliseconds"],
    },
    "Model": {
        "type": "object",
        "properties": {
            "model": _TEXT,
            "network": _TEXT,
            "classes": {"type": "array", "items": _TEXT},
            "image_size": {"type": "integer"},
            "threshold": {"type": ["number", "null"]},
            "has_class_maps": _FLAG,
            "size_bytes": {"type": "integer"},
            "sha256": _TEXT,
            "metrics": {"type": ["object", "null"]},
            "training": {"type": ["object", "null"]},
            "self_test": {"type": "object"},
        },
        "required": ["model", "network", "classes", "image_size", "threshold", "has_class_maps", "self_test"],
    },
}
