"""Compare the model inside a browser with Python's runtime on the same photos: classes, probabilities, time.

The page that `carnet export --web` writes is opened in Chromium without a window, and asked for each photo as it is for
chosen ones. Needs playwright, a Chromium, and npm (or --ort-dist).

Examples:
  python benchmarks/browser_agreement.py MODEL PHOTOS
  python benchmarks/browser_agreement.py MODEL PHOTOS --number 500 --name browser-agreement-trashnet
"""

from __future__ import annotations

import argparse
import base64
import random
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from environment import write_result
from PIL import Image

import carnet
from carnet.data.folder import images_in
from carnet.report.console import shown
from carnet.web.folder import write_web_folder
from carnet.web.runtime import runtime_files

MARGIN = 0.02
"""Where the two most probable classes are nearer than this, either may come first."""
ASK = """async text => {
  const bytes = Uint8Array.from(atob(text), sign => sign.charCodeAt(0));
  return engine.classify(new Blob([bytes]));
}"""


@contextmanager
def hosting(folder: Path) -> Iterator[str]:
    """Serve a folder on the loopback address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_address[1]}/"
        server.shutdown()


def compare(classifier: carnet.Classifier, page: Any, paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield for each photo whether the classes agree, the margin, and the largest difference of a probability."""
    for path in paths:
        content = path.read_bytes()
        started = time.perf_counter()
        expected = classifier.predict(content, top_k=classifier.spec.num_classes)
        milliseconds = 1000 * (time.perf_counter() - started)
        found = page.evaluate(ASK, base64.b64encode(content).decode())
        known = dict(zip(expected.classes, expected.probabilities, strict=True))
        with Image.open(path) as image:
            short = min(image.size)
        yield {
            "agrees": found["predictions"][0]["class"] == expected.label,
            "margin": expected.probabilities[0] - expected.probabilities[1],
            "difference": max(abs(one["probability"] - known[one["class"]]) for one in found["predictions"]),
            "milliseconds": found["milliseconds"],
            "milliseconds_python": milliseconds,
            "short_side": short,
        }


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="an exported model")
    parser.add_argument("photos", type=Path)
    parser.add_argument("--number", type=int, default=200, help="of photos")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="path of the browser")
    parser.add_argument("--ort-dist", type=Path)
    parser.add_argument("--name", default="browser-agreement", help="of the result's file")
    options = parser.parse_args()
    paths = sorted(images_in(options.photos))
    paths = random.Random(0).sample(paths, min(options.number, len(paths)))
    classifier = carnet.Classifier(options.model, threads=1)
    with tempfile.TemporaryDirectory() as scratch, shown(None) as progress:
        write_web_folder(classifier, Path(scratch) / "app", runtime_files(options.ort_dist, progress))
        with hosting(Path(scratch)) as url, sync_playwright() as started:
            browser = started.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
            page = browser.new_page()
            page.goto(f"{url}app/")
            page.wait_for_selector("html[data-ready]")
            rows = list(compare(classifier, page, paths))
            version = browser.version
            browser.close()
    numbers = {
        "model": classifier.spec.model,
        "image_size": classifier.spec.image_size,
        "photos": len(rows),
        "median_short_side": statistics.median(row["short_side"] for row in rows),
        "chromium": version,
        "same_class": sum(row["agrees"] for row in rows),
        "same_class_beyond_margin": sum(row["agrees"] for row in rows if row["margin"] > MARGIN),
        "beyond_margin": sum(row["margin"] > MARGIN for row in rows),
        "largest_difference": max(row["difference"] for row in rows),
        "median_difference": statistics.median(row["difference"] for row in rows),
        "median_ms": statistics.median(row["milliseconds"] for row in rows),
        "median_ms_python": statistics.median(row["milliseconds_python"] for row in rows),
    }
    print(numbers)
    write_result(
        options.name, f"python benchmarks/browser_agreement.py MODEL PHOTOS --number {options.number}", numbers
    )


if __name__ == "__main__":
    main()
