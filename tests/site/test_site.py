"""The documentation site has every page and every public name, and its links lead somewhere."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from children import finished

import carnet
from carnet.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs" / "site"


@pytest.fixture(scope="module")
def build() -> Any:
    """docs/site/build.py, which is a script."""
    spec = spec_from_file_location("site_build", SITE / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_has_a_place_in_the_contents(build: Any, tmp_path: Path) -> None:
    build.write_sources(tmp_path)
    pages = {page.stem for page in (*tmp_path.glob("*.md"), *tmp_path.glob("*.ipynb"))}
    placed = [page for pages in build.SECTIONS.values() for page in pages]
    assert sorted(placed) == sorted(pages)


def test_every_public_name_is_in_the_reference() -> None:
    page = (SITE / "api.md").read_text(encoding="utf-8")
    named = re.findall(r"auto(?:class|function):: carnet\.(\w+)", page)
    # The errors stand together at the end.
    assert sorted([*named, "CarnetError"]) == sorted(carnet.__all__)


def test_every_command_is_there_with_its_help(build: Any) -> None:
    page = build.commands()
    for name in COMMANDS:
        assert f"## carnet {name}\n" in page
        assert f"usage: carnet {name}" in page


@pytest.mark.parametrize(
    ("path", "before", "after"),
    [
        ("README.md", "[data](docs/data.md#images)", "[data](data.md#images)"),
        ("README.md", "![a page](docs/images/classifier-page.png)", "![a page](images/classifier-page.png)"),
        ("docs/runs.md", "[the log](../benchmarks/LOG.md#fifty-minutes)", "[the log](log.md#fifty-minutes)"),
        ("docs/runs.md", "[metrics](../carnet/metrics.py)", "metrics (`carnet/metrics.py`)"),
        ("docs/runs.md", "[`benchmarks/results`](../benchmarks/results)", "`benchmarks/results`"),
        (
            "docs/runs.md",
            "[here](#there) [it](https://example.org/a.md)",
            "[here](#there) [it](https://example.org/a.md)",
        ),
        ("README.md", "[`code` [x]](docs/data.md)", "[`code` [x]](data.md)"),
    ],
)
def test_links_become_those_of_the_site(build: Any, path: str, before: str, after: str) -> None:
    pages = {"docs/data.md": "data.md"} | build.ELSEWHERE
    assert build.with_links(f"x {before} y", path, pages) == f"x {after} y"


def test_a_link_to_a_missing_file_is_named(build: Any) -> None:
    with pytest.raises(SystemExit, match=r"README\.md links to docs/nothing\.md"):
        build.with_links("[x](docs/nothing.md)", "README.md", {})


def test_dead_links_are_found(build: Any, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html#here">x</a><a href="#top">y</a><img src="c%20d.png"><p id="top">')
    (tmp_path / "b.html").write_text('<p id="here"><a href="https://example.org">z</a><a href="a.html#gone">x</a>')
    assert build.dead_links(tmp_path) == ["a.html: c%20d.png", "b.html: a.html#gone"]
    (tmp_path / "c d.png").touch()
    (tmp_path / "b.html").write_text('<p id="here">')
    assert build.dead_links(tmp_path) == []


needs_sphinx = pytest.mark.skipif(find_spec("sphinx") is None, reason="Sphinx is not installed; make docs installs it")


@needs_sphinx
@pytest.mark.parametrize(("page", "passes"), [("# A\n\n[b](b.md)\n", True), ("# A\n\n[b](c.md)\n", False)])
def test_a_warning_ends_the_build(build: Any, tmp_path: Path, page: str, passes: bool) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "conf.py").write_text("extensions = ['myst_nb']\n")
    (source / "index.md").write_text(page + "\n```{toctree}\nb\n```\n")
    (source / "b.md").write_text("# B\n")
    assert (build.built(source, tmp_path / "site", tmp_path / "trees") == 0) is passes


@pytest.mark.slow
@needs_sphinx
def test_the_site_is_built(tmp_path: Path) -> None:
    done = finished([sys.executable, str(SITE / "build.py"), str(tmp_path / "site")])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "index.html").exists()


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_no_page_has_gaps(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if re.fullmatch(r"[A-Z]{4,}", line)]
