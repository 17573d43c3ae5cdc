"""Count the prose: dialect words, errors asserted by a sentence, attributes that tests replace, words of documents.

Dialect words are those of `DIALECT` in docstrings, comments, texts and documents. A test asserts an error by a sentence
where it gives `match=` a text of several words. It replaces an attribute where it calls `monkeypatch.setattr`. Words
are those that `wc -w` counts.

Example:
  python benchmarks/prose.py --commit HEAD~20
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from worktree import ROOT, commit_name, worktree

DIALECT = (
    r"mend(s|ed|ing)?|shall|judg\w*|surest|surely|named alike|whole images|nearly whole|to be had|rehears\w*|narrat\w*|"
    r"foretell\w*|foretold|lest|whatsoever|hair above|are shown|pieces of an image|random pieces"
)
_DIALECT = re.compile(rf"\b(?:{DIALECT})\b", re.IGNORECASE)
_BLANK_BEFORE_PERCENT = re.compile(r"[\d}] %(?![\w(])")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", help="count this one as well, and show both")
    parser.add_argument(
        "--list", action="store_true", help="name each place with a dialect word, a sentence or a patch"
    )
    parser.add_argument("--name", default="prose", help="of the dated result; another one of this day is replaced")
    parser.add_argument("--no-result", action="store_true", help="write no dated result")
    options = parser.parse_args()
    counts: dict[str, dict[str, Any]] = {}
    if options.commit:
        hash_ = commit_name(options.commit)
        with worktree(hash_) as tree:
            counts[hash_] = count(tree)
    counts["present"] = count(ROOT)
    rows = list(dict.fromkeys(row for found in counts.values() for row in found if row != "places"))
    print("", *(f"{name:>14}" for name in counts), sep="\t")
    for row in rows:
        print(f"{row:60}", *(f"{found.get(row, 0):>14}" for found in counts.values()), sep="\t")
    if options.list:
        print(*counts["present"]["places"], sep="\n")
    if not options.no_result:
        from environment import write_result

        found = {name: {key: value for key, value in each.items() if key != "places"} for name, each in counts.items()}
        print(
            write_result(
                options.name, f"python benchmarks/prose.py {' '.join(sys.argv[1:])}".strip(), {"counts": found}
            )
        )


def count(tree: Path) -> dict[str, Any]:
    """Count one tree.

    Args:
        tree: the root of a work tree.
    """
    documents = [tree / "README.md", *sorted((tree / "docs").glob("*.md"))]
    code = [*sorted((tree / "carnet").rglob("*.py")), *sorted((tree / "carnet").rglob("*.html"))]
    tests = sorted((tree / "tests").rglob("*.py"))
    places: list[str] = []

    def number(files: list[Path], find: Callable[[str], Iterator[int]]) -> int:
        found = [
            f"{file.relative_to(tree).as_posix()}:{line}" for file in files for line in find(file.read_text("utf-8"))
        ]
        places.extend(found)
        return len(found)

    counts: dict[str, Any] = {
        "dialect words in the package": number(code, _lines_with(_DIALECT)),
        "dialect words in the documents": number(documents, _lines_with(_DIALECT)),
        "dialect words in the tests": number(tests, _lines_with(_DIALECT)),
        "blanks before a percent sign, package and documents": number(
            code + documents, _lines_with(_BLANK_BEFORE_PERCENT)
        ),
        "errors asserted by a sentence": number(tests, _sentences),
        "attributes replaced by tests": number(tests, _patches),
    }
    words = {file.relative_to(tree).as_posix(): len(file.read_text("utf-8").split()) for file in documents}
    counts |= {f"words of {name}": size for name, size in words.items()}
    return counts | {"words of all documents": sum(words.values()), "places": places}


def _lines_with(pattern: re.Pattern[str]) -> Callable[[str], Iterator[int]]:
    def find(source: str) -> Iterator[int]:
        for number, line in enumerate(source.splitlines(), start=1):
            yield from (number for _ in pattern.finditer(line))

    return find


def _sentences(source: str) -> Iterator[int]:
    """The lines of `match=` with a text of several words."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg == "match":
            texts = (
                part.value
                for part in ast.walk(node.value)
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            )
            if any(re.search(r"[a-z] [a-z]", text) for text in texts):
                yield node.value.lineno


def _patches(source: str) -> Iterator[int]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("monkeypatch.setattr"):
            yield node.lineno


if __name__ == "__main__":
    main()
