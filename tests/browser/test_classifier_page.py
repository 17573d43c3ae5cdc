"""The page that classifies photos, in a browser: beside a service, and with the model inside the browser."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser_agreement import hosting
from drawing import draw_photo, save
from PIL import Image
from serving import running

import carnet
from carnet.server.app import create_app
from carnet.server.guards import Access
from carnet.text import Silent
from carnet.web.folder import write_web_folder
from carnet.web.runtime import runtime_files

INSECURE_HOST = "carnet.test"
"""A name that the browser takes for this machine (conftest.py), and for no secure one."""
WAIT = 60_000
"""Milliseconds after which a page hangs, on the slowest of machines."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Drawn photos of several sizes, shapes and formats."""
    folder = tmp_path_factory.mktemp("pictures")
    sizes = [(320, 240), (240, 320), (900, 700), (64, 600), (50, 40), (1600, 1200)]
    for number in range(54):
        image = draw_photo(number).resize(sizes[number % len(sizes)], Image.Resampling.BICUBIC)
        save(folder / f"{number:02}.{('jpg', 'png', 'webp')[number % 3]}", image)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def site(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A host's folder with the page below it: in a/b/drawn-things."""
    if shutil.which("npm") is None:
        pytest.skip("no npm found to fetch onnxruntime-web with")
    with pytest.MonkeyPatch.context() as patch:
        # Fetched once for all runs of the tests.
        patch.delenv("CARNET_CACHE")
        runtime = runtime_files(None, Silent())
    root = tmp_path_factory.mktemp("site")
    (root / "a" / "b").mkdir(parents=True)
    write_web_folder(carnet.Classifier(exported), root / "a" / "b" / "drawn-things", runtime)
    return root


@pytest.fixture(params=["service", "browser"])
def address(request: pytest.FixtureRequest, exported: Path) -> Iterator[str]:
    """The page of a service, and that of a folder."""
    if request.param == "service":
        with running(create_app(carnet.Classifier(exported, threads=1))) as service:
            yield f"http://localhost:{service.port}/"
    else:
        with hosting(request.getfixturevalue("site")) as url:
            yield f"{url}a/b/drawn-things/"


def ready(page: Any) -> Any:
    page.wait_for_selector("html[data-ready]", timeout=WAIT)
    return page


def answers(page: Any, number: int) -> list[str]:
    """Wait for so many answers, and return the most probable classes."""
    page.locator(".photo .bars").nth(number - 1).wait_for(timeout=WAIT)
    assert page.locator(".photo .bars").count() == number
    return [row.inner_text() for row in page.locator(".photo .bars li:first-child .name").all()]


def screenshot(page: Any, name: str, tmp_path: Path) -> None:
    folder = Path(os.environ.get("CARNET_SCREENSHOTS", tmp_path))
    page.screenshot(path=folder / f"{name}.png", full_page=True)


def test_chosen_photos_get_the_models_answers(address: str, visit: Any, exported: Path, pictures: list[Path]) -> None:
    page = ready(visit(address))
    page.set_input_files("#files", pictures[:6])
    classifier = carnet.Classifier(exported)
    assert answers(page, 6) == [classifier.predict(path).label for path in pictures[:6]]
    assert page.locator(".photo .file").all_inner_texts() == [path.name for path in pictures[:6]]
    assert page.locator("#said").inner_text().startswith(pictures[5].name)
    assert page.locator(".unsure").count() == sum(
        classifier.predict(path).is_confident is False for path in pictures[:6]
    )
    page.get_by_role("button", name="Remove all photos").click()
    assert page.locator(".photo").count() == 0


def test_the_browsers_answers_are_pythons(visit: Any, site: Path, exported: Path, pictures: list[Path]) -> None:
    """At least fifty photos: one class unless it is nearly a draw, and probabilities that hardly differ."""
    classifier = carnet.Classifier(exported)
    with hosting(site) as url:
        page = ready(visit(f"{url}a/b/drawn-things/"))
        checks = json.loads(page.locator("html").get_attribute("data-checks"))
        assert [check["passed"] for check in checks] == [True, True]
        page.set_input_files("#files", pictures)
        answers(page, len(pictures))
        for path, card in zip(pictures, page.locator(".photo").all(), strict=True):
            expected = classifier.predict(path, top_k=3)
            names = card.locator(".bars .name").all_inner_texts()
            shares = dict(zip(names, card.locator(".bars .share").all_inner_texts(), strict=True))
            if expected.probabilities[0] - expected.probabilities[1] > 0.02:
                assert names[0] == expected.label, path
            for name, probability in zip(expected.classes, expected.probabilities, strict=True):
                assert float(shares[name].rstrip("%")) == pytest.approx(100 * probability, abs=2), path


def test_paste_and_drop(address: str, visit: Any, pictures: list[Path]) -> None:
    page = ready(visit(address))
    content = pictures[0].read_bytes()
    give = """([bytes, kind]) => {
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(bytes)], "given.jpg", {type: "image/jpeg"}));
      const settings = {clipboardData: data, dataTransfer: data, bubbles: true, cancelable: true};
      document.body.dispatchEvent(new (kind === "paste" ? ClipboardEvent : DragEvent)(kind, settings));
    }"""
    page.evaluate(give, [list(content), "drop"])
    answers(page, 1)
    page.evaluate(give, [list(content), "paste"])
    assert len(set(answers(page, 2))) == 1


def test_the_heat_map_is_pythons(address: str, visit: Any, exported: Path, pictures: list[Path]) -> None:
    page = ready(visit(address))
    page.set_input_files("#files", pictures[2])
    answers(page, 1)
    button = page.get_by_role("button", name="Show where")
    assert page.locator(".photo canvas").is_visible()
    button.click()
    page.wait_for_selector("button[aria-pressed=true].where", timeout=WAIT)
    drawn = page.evaluate(
        """async () => {
          const image = document.querySelector(".photo img");
          await image.decode();
          const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
          canvas.getContext("2d").drawImage(image, 0, 0);
          return [canvas.width, [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data]];
        }"""
    )
    side, values = drawn
    found = np.array(values, np.uint8).reshape(side, side, 4)[:, :, :3]
    expected = np.asarray(carnet.Classifier(exported).explain(pictures[2]).figure)
    assert np.abs(found.astype(int) - expected).max() <= 3
    button.click()
    assert page.locator(".photo canvas").is_visible()
    assert not page.locator(".photo img").is_visible()


def test_the_live_camera(address: str, visit: Any, tmp_path: Path) -> None:
    page = ready(visit(address, permissions=["camera"]))
    page.get_by_role("button", name="Live camera").click()
    page.wait_for_selector("#live-answer .bars", timeout=WAIT)
    tracks = page.evaluate_handle("document.getElementById('video').srcObject.getTracks()")
    page.get_by_role("button", name="Stop the camera").click()
    assert not page.locator("#live").is_visible()
    # The camera's light is off.
    assert tracks.evaluate("tracks => tracks.map(track => track.readyState)") == ["ended"]


def test_a_second_click_while_the_camera_opens_opens_no_second_one(address: str, visit: Any) -> None:
    page = ready(visit(address, permissions=["camera"]))
    opened = page.evaluate(
        """() => {
          let number = 0;
          const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
          navigator.mediaDevices.getUserMedia = what => { number++; return ask(what); };
          document.getElementById("camera").click();
          document.getElementById("camera").click();
          return number;
        }"""
    )
    assert opened == 1
    page.wait_for_selector("#live-answer .bars", timeout=WAIT)


def test_a_camera_that_is_refused_is_said(address: str, visit: Any) -> None:
    page = ready(visit(address))
    page.evaluate(
        """() => {
          navigator.mediaDevices.getUserMedia = async () => { throw new DOMException("no", "NotFoundError"); };
        }"""
    )
    page.get_by_role("button", name="Live camera").click()
    page.locator("#camera-state", has_text="there is none").wait_for(timeout=WAIT)


def test_a_photo_that_is_removed_at_once_leaves_nothing(address: str, visit: Any, pictures: list[Path]) -> None:
    page = ready(visit(address))
    page.evaluate(
        """() => {
          document.getElementById("files").addEventListener("change", () => document.querySelector(".remove").click());
        }"""
    )
    page.set_input_files("#files", pictures[:2])
    answers(page, 1)
    assert page.locator(".photo").count() == 1
    assert pictures[0].name not in page.locator("#said").inner_text()


def test_what_is_no_image_is_said(address: str, visit: Any, tmp_path: Path, pictures: list[Path]) -> None:
    page = ready(visit(address, refusals=1))
    (tmp_path / "notes.jpg").write_text("no image")
    page.set_input_files("#files", [tmp_path / "notes.jpg", pictures[0]])
    answers(page, 1)
    assert "image" in page.locator(".photo .failure").inner_text()
    assert page.locator(".photo").count() == 2


def test_names_are_text(address: str, visit: Any, tmp_path: Path, pictures: list[Path]) -> None:
    page = ready(visit(address))
    name = "<img src=x onerror=alert(1)>&amp;.jpg"
    page.set_input_files("#files", {"name": name, "mimeType": "image/jpeg", "buffer": pictures[0].read_bytes()})
    answers(page, 1)
    assert page.locator(".photo .file").inner_text() == name


def test_the_keyboard_alone(address: str, visit: Any, pictures: list[Path]) -> None:
    page = ready(visit(address))
    page.set_input_files("#files", pictures[0])
    answers(page, 1)
    focused = []
    for _ in range(12):
        page.keyboard.press("Tab")
        focused.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert [one for one in ("files", "camera", "where", "remove", "clear") if one not in focused] == []
    page.locator(".photo .remove").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "files"


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_screen(
    address: str, visit: Any, width: int, scheme: str, pictures: list[Path], tmp_path: Path
) -> None:
    page = ready(visit(address))
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme)
    page.set_input_files("#files", pictures[:4])
    answers(page, 4)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    screenshot(page, f"{'web' if 'drawn-things' in address else 'service'}-{width}-{scheme}", tmp_path)


def test_without_a_network_after_the_first_visit(visit: Any, site: Path, pictures: list[Path]) -> None:
    with hosting(site) as url:
        page = ready(visit(f"{url}a/b/drawn-things/"))
        page.wait_for_selector("html[data-offline]", timeout=WAIT)
        page.set_input_files("#files", pictures[0])
        online = answers(page, 1)
    # The host is gone.
    page.reload()
    ready(page)
    page.set_input_files("#files", pictures[0])
    assert answers(page, 1) == online


def test_a_new_version_is_seen_at_once_and_replaces_the_older_files(visit: Any, site: Path, tmp_path: Path) -> None:
    copy = tmp_path / "site"
    shutil.copytree(site, copy)
    app = copy / "a" / "b" / "drawn-things"
    with hosting(copy) as url:
        page = ready(visit(f"{url}a/b/drawn-things/"))
        page.wait_for_selector("html[data-offline]", timeout=WAIT)
        before = page.locator("html").get_attribute("data-version")
        for name in ("index.html", "manifest.webmanifest", "files.json"):
            (app / name).write_text((app / name).read_text().replace(before, "newer"))
        listing = json.loads((app / "files.json").read_text())
        for name, file in (("./", "index.html"), ("manifest.webmanifest", "manifest.webmanifest")):
            listing[name] = hashlib.sha256((app / file).read_bytes()).hexdigest()
        (app / "files.json").write_text(json.dumps(listing))
        page.reload()
        ready(page)
        assert page.locator("html").get_attribute("data-version") == "newer"
        # The page's policy forbids to evaluate text, so the test asks again and again.
        for _ in range(WAIT // 50):
            if [name.split()[-1] for name in page.evaluate("caches.keys()")] == ["newer"]:
                break
            page.wait_for_timeout(50)
        else:
            pytest.fail("the older files are still there")


def test_a_version_that_is_half_uploaded_is_not_kept(visit: Any, site: Path, tmp_path: Path) -> None:
    copy = tmp_path / "site"
    shutil.copytree(site, copy)
    script = copy / "a" / "b" / "drawn-things" / "page.js"
    script.write_text(script.read_text() + "// older\n")
    with hosting(copy) as url:
        page = ready(visit(f"{url}a/b/drawn-things/", refusals=9))
        page.locator("#notes", has_text="could not be kept").wait_for(timeout=WAIT)


def test_without_https_it_says_what_does_not_work(visit: Any, site: Path, exported: Path, pictures: list[Path]) -> None:
    access = Access((INSECURE_HOST,))
    with hosting(site) as url, running(create_app(carnet.Classifier(exported), access=access)) as service:
        for address in (
            re.sub("localhost", INSECURE_HOST, f"{url}a/b/drawn-things/"),
            f"http://{INSECURE_HOST}:{service.port}/",
        ):
            page = ready(visit(address))
            assert "HTTPS" in page.locator("#notes").inner_text()
            assert page.locator("#camera").is_disabled()
            page.set_input_files("#files", pictures[0])
            answers(page, 1)


def test_opened_as_a_file_it_says_what_to_do(browser: Any, site: Path) -> None:
    page = browser.new_page()
    page.goto((site / "a" / "b" / "drawn-things" / "index.html").as_uri())
    assert "http.server" in page.locator("#state").inner_text()
    page.close()


def test_a_browser_that_computes_otherwise_is_named(visit: Any, site: Path, tmp_path: Path) -> None:
    copy = tmp_path / "site"
    shutil.copytree(site, copy)
    about = copy / "a" / "b" / "drawn-things" / "model.json"
    document = json.loads(about.read_text())
    document["tests"][0]["probabilities"].reverse()
    about.write_text(json.dumps(document))
    with hosting(copy) as url:
        page = ready(visit(f"{url}a/b/drawn-things/"))
        assert "lossless" in page.locator("#state.warning").inner_text()


def test_a_token_is_asked_for(visit: Any, exported: Path, pictures: list[Path]) -> None:
    with running(create_app(carnet.Classifier(exported), access=Access((), "secret"))) as service:
        page = visit(f"http://localhost:{service.port}/", refusals=2)
        page.get_by_label("Token").fill("wrong")
        page.get_by_role("button", name="Use it").click()
        page.locator("#token-state", has_text="not accepted").wait_for(timeout=WAIT)
        page.get_by_label("Token").fill("secret")
        page.get_by_role("button", name="Use it").click()
        ready(page)
        assert "green" in page.locator("#summary").inner_text()
        page.set_input_files("#files", pictures[:2])
        answers(page, 2)


def test_a_service_that_has_gone_is_named(visit: Any, exported: Path, pictures: list[Path]) -> None:
    with running(create_app(carnet.Classifier(exported))) as service:
        page = ready(visit(f"http://localhost:{service.port}/", refusals=1))
    page.set_input_files("#files", pictures[0])
    page.wait_for_selector(".photo .failure", timeout=WAIT)
    assert "running" in page.locator(".photo .failure").inner_text()


def test_the_page_of_the_interface(visit: Any, exported: Path, tmp_path: Path) -> None:
    with running(create_app(carnet.Classifier(exported))) as service:
        page = visit(f"http://localhost:{service.port}/api")
        assert page.get_by_role("heading", name="POST /v1/predict").is_visible()
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        screenshot(page, "api-390", tmp_path)


def test_a_large_photo_is_read_in_parts(visit: Any, site: Path, exported: Path) -> None:
    """Twenty-five megapixels: phones draw nothing on a canvas of that size."""
    content = io.BytesIO()
    draw_photo(3).resize((6000, 4200), Image.Resampling.BICUBIC).save(content, "JPEG", quality=90)
    expected = carnet.Classifier(exported).predict(content.getvalue())
    with hosting(site) as url:
        page = ready(visit(f"{url}a/b/drawn-things/"))
        page.set_input_files("#files", {"name": "large.jpg", "mimeType": "image/jpeg", "buffer": content.getvalue()})
        assert answers(page, 1) == [expected.label]
