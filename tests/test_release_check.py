"""`tools/release_check.py` finds what is wrong with a release."""

from __future__ import annotations

import pytest
from release_check import problems_of

KNOWN = {"carnet/__init__.py", "carnet/web/static/page.js"}
WHEEL = {*KNOWN, "carnet-1.0.dist-info/METADATA", "carnet-1.0.dist-info/licenses/LICENSE"}
ARCHIVE = {*KNOWN, "README.md"}
CHANGES = "# Changelog\n\n## 1.0 (2026-11-30)\n"


def test_a_good_release() -> None:
    assert problems_of(WHEEL, KNOWN, ARCHIVE, version="1.0", changes=CHANGES, tag="v1.0") == []
    assert problems_of(WHEEL, KNOWN, ARCHIVE, version="1.0", changes="## 1.0 (unreleased)", tag="") == []


@pytest.mark.parametrize(
    ("wheel", "archive", "version", "changes", "tag", "named"),
    [
        (WHEEL - {"carnet/web/static/page.js"}, ARCHIVE, "1.0", CHANGES, "", "page.js"),
        (WHEEL | {"tests/conftest.py"}, ARCHIVE, "1.0", CHANGES, "", "conftest.py"),
        (WHEEL - {"carnet-1.0.dist-info/licenses/LICENSE"}, ARCHIVE, "1.0", CHANGES, "", "licence"),
        (WHEEL, ARCHIVE - {"carnet/__init__.py"}, "1.0", CHANGES, "", "archive"),
        (WHEEL, ARCHIVE, "1.1", CHANGES, "", "CHANGELOG"),
        (WHEEL, ARCHIVE, "1.0", CHANGES, "v1.1", "v1.1"),
        (WHEEL, ARCHIVE, "1.0", "## 1.0 (unreleased)", "v1.0", "no date"),
    ],
)
def test_what_is_wrong_is_named(
    wheel: set[str], archive: set[str], version: str, changes: str, tag: str, named: str
) -> None:
    (problem,) = problems_of(wheel, KNOWN, archive, version=version, changes=changes, tag=tag)
    assert named in problem
