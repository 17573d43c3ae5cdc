"""Build the documentation site: the README, the guides, the Python reference, every command's --help, results.

The pages stay ordinary Markdown, readable where the repository is. They are copied beside settings and `api.md`, with
their links changed to pages of the site. A warning of Sphinx, or a link within the site that leads nowhere, ends the
build; links to other sites are not followed.

Example:
  python docs/site/build.py site
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SECTIONS = {
    "Start": {"index": "CARNet", "quickstart": "Quick start"},
    "Guides": {
        "data": "Data",
        "check": "Know your data",
        "head-start": "Few photos",
        "recipe": "The recipes",
        "distillation": "A teacher",
        "runs": "Runs",
        "compare": "Compare networks",
        "deploy": "Deploy",
        "serve": "Show it",
        "hub": "timm and the Hub",
        "speed": "Speed and limits",
        "scale": "Scale",
    },
    "Reference": {"api": "Python", "commands": "Commands", "carnet_s": "The networks carnet_n, s, m"},
    "Results": {"benchmarks": "Measured results", "reproduction": "The published CARNet", "log": "Laboratory log"},
    "Project": {
        "design": "How it is laid out",
        "contributing": "Contributing",
        "security": "Security",
        "changelog": "Changes",
    },
}
"""Heading of the contents -> its pages and their short titles."""
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/LOG.md": "log.md",
    "examples/quickstart.ipynb": "quickstart.ipynb",
}
"""Files outside docs/ that are pages -> their names in the site."""
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder of the site")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, site = Path(folder) / "source", Path(folder) / "site"
        source.mkdir()
        write_sources(source)
        if code := built(source, site, Path(folder) / "doctrees"):
            sys.exit(code)
        if dead := dead_links(site):
            sys.exit("build.py: links that lead nowhere:\n  " + "\n  ".join(dead))
        shutil.rmtree(options.output, ignore_errors=True)
        shutil.copytree(site, options.output)
    print(f"The site is {options.output / 'index.html'}.")


def built(source: Path, site: Path, doctrees: Path) -> int:
    """Let Sphinx build the site, and return its exit code, which is not 0 after a warning."""
    sphinx = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "-d", str(doctrees)]
    return subprocess.run([*sphinx, str(source), str(site)], check=False).returncode


def write_sources(folder: Path) -> None:
    """Write everything that Sphinx reads."""
    pages = {f"docs/{page.name}": page.name for page in (ROOT / "docs").glob("*.md")} | ELSEWHERE
    for path, name in pages.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        if path.endswith(".md"):
            text = with_links(text, path, pages)
        (folder / name).write_text(text + (contents() if path == "README.md" else ""), encoding="utf-8")
    (folder / "commands.md").write_text(commands(), encoding="utf-8")
    for name in ("conf.py", "api.md"):
        shutil.copy(HERE / name, folder / name)
    shutil.copytree(HERE / "static", folder / "static")
    shutil.copytree(ROOT / "docs" / "images", folder / "images")


def with_links(text: str, path: str, pages: Mapping[str, str]) -> str:
    """Return a page with links to files of the repository changed to pages of the site.

    A file that is no page is named instead of linked.

    Args:
        text: the page.
        path: where it stands in the repository.
        pages: path in the repository -> name in the site.
    """

    def changed(match: re.Match[str]) -> str:
        image, words, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        file, _, anchor = target.partition("#")
        there = os.path.normpath(Path(path).parent / file).replace(os.sep, "/")
        if there.startswith("docs/images/"):
            return f"{image}[{words}]({there.removeprefix('docs/')})"
        if there in pages:
            return f"[{words}]({pages[there]}{'#' if anchor else ''}{anchor})"
        if not (ROOT / there).exists():
            raise SystemExit(f"build.py: {path} links to {target}, which is not there")
        return words if there in words else f"{words} (`{there}`)"

    return _LINK.sub(changed, text)


def contents() -> str:
    """Return the tables of contents that the first page hides and the side bar shows."""
    parts = []
    for heading, pages in SECTIONS.items():
        entries = "\n".join(f"{title} <{'self' if page == 'index' else page}>" for page, title in pages.items())
        parts.append(f"\n```{{toctree}}\n:hidden:\n:caption: {heading}\n\n{entries}\n```\n")
    return "".join(parts)


def commands() -> str:
    """Return a page with the help of every command."""
    from carnet.cli.main import COMMANDS

    parts = ["# Commands\n"]
    for words in ([], *([name] for name in COMMANDS)):
        variables = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1"}
        command = [sys.executable, "-m", "carnet", *words, "--help"]
        shown = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True, env=variables)
        title = f"\n## carnet {words[0]}\n" if words else ""
        parts.append(f"{title}\n```text\n{shown.stdout.strip()}\n```\n")
    return "".join(parts)


class _Page(HTMLParser):
    """The targets that a page links to, and the anchors it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Remember a link, or an anchor."""
        for name, value in attributes:
            if value and name in ("href", "src"):
                self.targets.add(value)
            elif value and name == "id":
                self.anchors.add(value)


def dead_links(site: Path) -> list[str]:
    """Return the links of a built site that lead to no file of it, or to no anchor of a page."""
    pages = {page: _Page(page.read_text(encoding="utf-8")) for page in sorted(site.rglob("*.html"))}
    dead = []
    for page, content in pages.items():
        for target in sorted(content.targets):
            address = urlsplit(target)
            if address.scheme or address.netloc:
                continue
            file = page if not address.path else Path(os.path.normpath(page.parent / unquote(address.path)))
            file = file / "index.html" if file.is_dir() else file
            anchor = unquote(address.fragment)
            is_inside = file.is_relative_to(site)
            if not is_inside or not file.exists() or (anchor and file in pages and anchor not in pages[file].anchors):
                dead.append(f"{page.relative_to(site)}: {target}")
    return dead


if __name__ == "__main__":
    main()
