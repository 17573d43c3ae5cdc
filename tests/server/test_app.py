"""The service answers as the model does, says what is wrong with a status of its own, and loses nothing."""

from __future__ import annotations

import io
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import Service, form, running

from carnet import Classifier
from carnet.edge.model_file import ModelFile, seal
from carnet.errors import ModelFileError, SelfTestError
from carnet.preprocess import Images
from carnet.server.app import create_app
from carnet.server.reading import MAX_IMAGES, Limits


def png(side: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (side, side), (90, 120, 30)).save(content, "PNG")
    return content.getvalue()


def rewritten(model: Path, **changes: Any) -> bytes:
    """A model file with another document."""
    file = ModelFile.read(model)
    # The earlier document stays before it, and the last one counts.
    return seal(file.content, {**file.document, **changes})


class Slow(Classifier):
    """Says when it computes, and waits until it may go on, once it is slow."""

    is_slow = False

    def __init__(self, model: Path, computing: threading.Event, go_on: threading.Event) -> None:
        super().__init__(model, threads=1)
        self.computing, self.go_on = computing, go_on

    def probabilities(self, images: Images) -> Any:
        if self.is_slow:
            self.computing.set()
            assert self.go_on.wait(60)
        return super().probabilities(images)


def counter(service: Service, name: str) -> float:
    """The value of a counter without labels."""
    lines = service.ask("/metrics").body.decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


# Answers


def test_it_answers_as_the_model_does(service: Service, exported: Path, photos: Path) -> None:
    classifier = Classifier(exported)
    for path in sorted(photos.rglob("*.jpg"))[:6]:
        answer = service.predict(path.read_bytes(), "?top_k=2", content_type="image/jpeg").json
        expected = classifier.predict(path, top_k=2)
        (result,) = answer["results"]
        assert [one["class"] for one in result["predictions"]] == list(expected.classes)
        given = [one["probability"] for one in result["predictions"]]
        assert given == pytest.approx(expected.probabilities, abs=1e-5)
        assert result["confident"] is expected.is_confident
        assert (answer["model"], result["name"]) == (exported.name, None)


def test_a_form_has_several_images_and_a_bad_one_harms_no_other(service: Service, photo: bytes) -> None:
    body, kind = form([("ä b.jpg", photo), ("notes.txt", b"no image"), ("c.png", png(40))])
    answer = service.predict(body, content_type=kind)
    names = [(one["name"], "predictions" in one, one.get("error", "")) for one in answer.json["results"]]
    assert answer.status == 200
    assert [name[:2] for name in names] == [("ä b.jpg", True), ("notes.txt", False), ("c.png", True)]
    assert "supported format" in names[1][2]


def test_curl_needs_no_header(service: Service, photo: bytes) -> None:
    answer = service.predict(photo, content_type="application/x-www-form-urlencoded")
    assert answer.status == 200


def test_explain_draws_what_the_model_draws(service: Service, exported: Path, photo: bytes) -> None:
    answer = service.ask("/v1/explain", photo)
    with Image.open(io.BytesIO(answer.body)) as drawn:
        assert np.array_equal(np.asarray(drawn), np.asarray(Classifier(exported).explain(photo).figure))
    assert answer.headers["content-type"] == "image/png"
    label = Classifier(exported).classes[-1]
    other = service.ask(f"/v1/explain?class={label}", photo)
    with Image.open(io.BytesIO(other.body)) as drawn:
        assert np.array_equal(np.asarray(drawn), np.asarray(Classifier(exported).explain(photo, label).figure))


def test_the_card_has_no_paths(service: Service, exported: Path) -> None:
    answer = service.ask("/v1/model")
    card = answer.json
    assert card["classes"] == list(Classifier(exported).classes)
    assert card["self_test"]["passed"]
    assert card["metrics"]["num_images"] > 0
    assert card["size_bytes"] == exported.stat().st_size
    assert str(exported.parent).encode() not in answer.body


def test_probes_metrics_and_the_page(service: Service, photo: bytes) -> None:
    assert service.ask("/healthz").json == {"status": "alive"}
    assert service.ask("/readyz").json == {"status": "ready"}

    def classified() -> float:
        lines = service.ask("/metrics").body.decode().splitlines()
        return next((float(line.split()[1]) for line in lines if line.startswith('carnet_images_total{outcome="cl')), 0)

    before = classified()
    service.predict(photo)
    assert classified() == before + 1
    assert "carnet_batch_images_bucket" in service.ask("/metrics").body.decode()
    page = service.ask("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert b'data-engine="service"' in page.body
    for path in ("/page.js", "/style.css", "/icon.png", "/api", "/openapi.json"):
        assert service.ask(path).status == 200


def test_a_made_up_path_gets_no_counter_of_its_own(service: Service) -> None:
    assert service.ask("/made-up-path").status == 404
    assert b"made-up" not in service.ask("/metrics").body


def test_names_of_classes_that_are_no_text(exported: Path, photo: bytes) -> None:
    names = ["caf\udce9", '"<b>', "\u202egnp.exe"]
    tests = ModelFile.read(exported).document["tests"]
    with running(create_app(Classifier(rewritten(exported, classes=names, tests=tests), threads=1))) as service:
        answer = service.predict(photo, "?top_k=9")
        assert {one["class"] for one in answer.json["results"][0]["predictions"]} == set(names)
        assert service.ask("/v1/model").json["classes"] == names
        page = service.ask("/").body.decode()
        assert "<b>" not in page
        assert "\u202e" not in page


# What is refused, and how


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/v1/predict", b"no image", {}, 422),
        ("/v1/predict", b"", {}, 400),
        ("/v1/predict", b"{}", {"content_type": "application/json"}, 415),
        ("/v1/predict", b"x", {"content_encoding": "gzip"}, 415),
        ("/v1/predict", b"x", {"content_type": "multipart/form-data"}, 400),
        ("/v1/predict", b"--edge\r\nno colon", {"content_type": "multipart/form-data; boundary=edge"}, 400),
        ("/v1/predict", form([("a", b"x")])[0][:-8], {"content_type": form([])[1]}, 400),
        ("/v1/predict", form([])[0], {"content_type": form([])[1]}, 400),
        ("/v1/predict", form([("", b"5")])[0].replace(b'; filename=""', b""), {"content_type": form([])[1]}, 400),
        ("/v1/predict", b"x", {"content_type": f"multipart/form-data; boundary={'b' * 300}"}, 400),
        ("/v1/predict", form([(str(k), b"x") for k in range(MAX_IMAGES + 1)])[0], {"content_type": form([])[1]}, 413),
        ("/v1/predict?top_k=0", b"x", {}, 400),
        ("/v1/predict?top_k=many", b"x", {}, 400),
        ("/v1/predict?top_k=" + "9" * 5000, b"x", {}, 400),
        ("/v1/explain", b"no image", {}, 422),
        ("/v1/explain?class=nobody", None, {}, 405),
        ("/v1/nothing", b"x", {}, 404),
        ("/v1/predict/", b"x", {}, 404),
        ("/../etc/passwd", None, {}, 404),
        ("/v1/model", None, {"host": "evil.example"}, 421),
        ("/v1/model", None, {"host": "1.2.3.4.evil.example"}, 421),
        ("/v1/model", None, {"host": "127.0.0.1:http"}, 421),
        ("/v1/model", None, {"host": "LOCALHOST.:8000"}, 200),
        ("/v1/model", None, {"host": "[::1]:8000"}, 200),
        ("/v1/model", None, {"host": "192.168.1.9"}, 200),
        ("/healthz", None, {"host": "whatever"}, 200),
        ("/v1/predict", b"x", {"origin": "https://evil.example"}, 403),
        ("/v1/predict", b"x", {"origin": "null"}, 403),
    ],
)
def test_refusals(service: Service, path: str, body: bytes | None, headers: dict[str, str], status: int) -> None:
    answer = service.ask(path, body, **headers)
    assert answer.status == status
    assert set(answer.json) == {"error"} or status == 200


def test_an_unknown_class_is_not_explained(service: Service, photo: bytes) -> None:
    answer = service.ask("/v1/explain?class=nobody", photo)
    assert answer.status == 400
    assert "nobody" in answer.json["error"]


def test_limits_on_bytes_and_pixels(exported: Path) -> None:
    limits = Limits(max_bytes=10_000)
    with running(create_app(Classifier(exported, threads=1, max_pixels=1000), limits=limits)) as service:
        assert service.predict(bytes(10_001)).status == 413
        assert service.predict(png(31)).status == 200
        assert service.predict(png(32)).status == 413
        # Without a length, the bytes are counted as they come.
        assert service.ask("/v1/predict", iter([bytes(6000)] * 2)).status == 413


def test_a_slow_request_and_a_slow_answer_end(exported: Path, photo: bytes) -> None:
    go_on = threading.Event()
    classifier = Slow(exported, threading.Event(), go_on)
    app = create_app(classifier, limits=Limits(seconds=0.2, max_waiting=2))
    classifier.is_slow = True
    with running(app) as service:
        with socket.create_connection(("127.0.0.1", service.port)) as half:
            half.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf")
            assert b" 408 " in half.recv(1000).partition(b"\r\n")[0]
        assert service.predict(photo).status == 504
        go_on.set()


def test_a_full_queue_asks_to_come_again_and_loses_nothing(exported: Path, photo: bytes) -> None:
    computing, go_on = threading.Event(), threading.Event()
    classifier = Slow(exported, computing, go_on)
    app = create_app(classifier, limits=Limits(max_waiting=2))
    classifier.is_slow = True
    with running(app) as service, ThreadPoolExecutor(2) as clients:
        first = clients.submit(service.predict, photo)
        assert computing.wait(60)
        body, kind = form([("a", photo), ("b", photo)])
        refused = service.predict(body, content_type=kind)
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        second = clients.submit(service.predict, photo)
        while service.ask("/readyz").status == 200:
            assert not second.done()
        assert service.predict(photo).status == 503
        go_on.set()
        assert [one.result().status for one in (first, second)] == [200, 200]
        assert service.predict(photo).status == 200


def test_a_token(exported: Path, photo: bytes) -> None:
    from carnet.server.guards import Access

    with running(create_app(Classifier(exported, threads=1), access=Access(("pi.example",), "secret"))) as service:
        for path in ("/v1/model", "/metrics"):
            assert service.ask(path).status == 401
        refused = service.predict(photo, authorization="Bearer wrong")
        assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert service.predict(photo, authorization="Basic secret").status == 401
        assert service.predict(photo, authorization="bearer secret").status == 200
        for path in ("/", "/page.js", "/healthz", "/readyz", "/api", "/openapi.json"):
            answer = service.ask(path)
            assert answer.status == 200
            assert b"green" not in answer.body
        assert service.ask("/", host="pi.example").status == 200
        assert service.ask("/", host="pi.example", origin="https://pi.example").status == 200


def test_a_model_that_answers_otherwise_is_not_served(exported: Path) -> None:
    tests = ModelFile.read(exported).document["tests"]
    wrong = [{**test, "probabilities": test["probabilities"][::-1]} for test in tests]
    with pytest.raises(SelfTestError):
        create_app(Classifier(rewritten(exported, tests=wrong)))
    with pytest.raises(ModelFileError):
        create_app(Classifier(rewritten(exported, tests=[])))


def go_on_when_closed(port: int, go_on: threading.Event) -> None:
    """Wait until nobody listens any more."""
    with suppress(OSError):
        while True:
            socket.create_connection(("127.0.0.1", port)).close()
    go_on.set()


def test_stopping_finishes_what_was_accepted(exported: Path, photo: bytes) -> None:
    computing, go_on = threading.Event(), threading.Event()
    classifier = Slow(exported, computing, go_on)
    app = create_app(classifier)
    classifier.is_slow = True
    with ThreadPoolExecutor(1) as clients:
        with running(app) as service:
            answer = clients.submit(service.predict, photo)
            assert computing.wait(60)
            threading.Thread(target=go_on_when_closed, args=[service.port, go_on]).start()
        assert answer.result().status == 200


def test_requests_that_arrive_together_share_a_batch(exported: Path, photo: bytes) -> None:
    computing, go_on = threading.Event(), threading.Event()
    classifier = Slow(exported, computing, go_on)
    app = create_app(classifier)
    classifier.is_slow = True
    with running(app) as service, ThreadPoolExecutor(8) as clients:
        first = clients.submit(service.predict, photo)
        assert computing.wait(60)
        others = [clients.submit(service.predict, photo) for _ in range(7)]
        waiting = 0.0
        while waiting < 8:
            waiting = counter(service, "carnet_images_waiting")
        go_on.set()
        assert {one.result().status for one in (first, *others)} == {200}
        # One alone; the others together, or in two batches where one of them was still being decoded.
        assert counter(service, "carnet_batch_images_count") in (2, 3)


def test_a_client_that_goes_is_no_longer_waited_for(exported: Path, photo: bytes) -> None:
    computing, go_on = threading.Event(), threading.Event()
    classifier = Slow(exported, computing, go_on)
    app = create_app(classifier, limits=Limits(max_waiting=1))
    classifier.is_slow = True
    with running(app) as service:
        head = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(photo)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", service.port)) as client:
            client.sendall(head.encode() + photo)
            assert computing.wait(60)
            assert service.ask("/readyz").status == 503
        while service.ask("/readyz").status == 503:
            pass
        go_on.set()
        assert service.predict(photo).status == 200


def test_a_form_with_more_images_than_may_wait_is_not_asked_to_come_again(exported: Path, photo: bytes) -> None:
    with running(create_app(Classifier(exported, threads=1), limits=Limits(max_waiting=2))) as service:
        body, kind = form([(str(number), photo) for number in range(3)])
        assert service.predict(body, content_type=kind).status == 413


def test_the_description_describes_what_is_there(service: Service) -> None:
    description = service.ask("/openapi.json").json
    assert set(description["paths"]) == {"/v1/predict", "/v1/explain", "/v1/model", "/healthz", "/readyz", "/metrics"}
    for path in ("/v1/model", "/healthz", "/readyz"):
        answer = service.ask(path).json
        schema = description["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        if "$ref" in schema:
            schema = description["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
        assert set(schema["required"]) <= set(answer)
    page = service.ask("/api").body.decode()
    assert all(path in page for path in description["paths"])
