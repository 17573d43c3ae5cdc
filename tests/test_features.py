"""The table of features, `FEATURES.md`, names existing tests and all flags; and tests of flags that have no other."""

from __future__ import annotations

import ast
import functools
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from carnet.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[1]
TABLE = (ROOT / "tests" / "FEATURES.md").read_text(encoding="utf-8")
WITHOUT = "## Without a test"
TESTS = sorted(set(re.findall(r"`(tests/\S+?\.py)::(\w+)(?:\[(.+?)\])?`", TABLE)))
LEARNING = ["--model", "carnet_n", "--image-size", "32", "--epochs", "2", "--batch-size", "8", "--compile", "off"]


@functools.cache
def parsed(path: str) -> tuple[set[str], set[str]]:
    """Return the functions at the top level of a test file, and its strings."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, texts


def test_every_row_of_the_table_names_a_test() -> None:
    rows = [line for line in TABLE.partition(WITHOUT)[0].splitlines() if line.startswith("| ")]
    heads = [row for row in rows if "`tests/" not in row]
    assert set(heads) == {"| what | promised in | test |"}
    assert all(re.search(r"`tests/\S+\.py::test_\w+.*` \|$", row) for row in rows if row not in heads)


def lost(path: str, tests: list[tuple[str, str]]) -> list[str]:
    """Return the tests and cases that a file does not have."""
    functions, texts = parsed(path)
    missing = [name for name, _ in tests if name not in functions]
    # A case is named by a string of its row, perhaps with the kind of data before it.
    for _, case in tests:
        if case and not ({case, case.partition("-")[2], case.partition(": ")[2]} - {""}) & texts:
            missing.append(case)
    return missing


@pytest.mark.parametrize("path", sorted({path for path, *_ in TESTS}))
def test_every_test_in_the_table_exists(path: str) -> None:
    missing = lost(path, [(name, case) for other, name, case in TESTS if other == path])
    assert not missing, f"{path} has no {', '.join(missing)}; say in FEATURES.md which test it is now"


def test_the_check_can_fail() -> None:
    known = ("test_what_becomes_of_it", "folder-loose")
    unknown = [("test_that_nobody_wrote", ""), (known[0], "folder-nothing")]
    assert lost("tests/data/test_mistakes.py", [known, *unknown]) == ["test_that_nobody_wrote", "folder-nothing"]


def test_every_flag_is_in_the_table(said_by: Callable[..., str]) -> None:
    for command in COMMANDS:
        flags = set(re.findall(r"^\W*(--[a-z0-9-]+)", said_by(command, "--help"), flags=re.MULTILINE))
        assert "--json" in flags
        missing = [flag for flag in flags if f"{flag}`" not in TABLE and f"{flag} " not in TABLE]
        assert not missing, f"carnet {command}: {', '.join(sorted(missing))}"


@pytest.fixture
def said_by(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run a command, and return its output and errors."""
    monkeypatch.setenv("GOMP_SPINCOUNT", "20000")

    def call(*words: object, code: int = 0) -> str:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert end.value.code == code, err
        return out + err

    return call


# Flags that no other test uses.


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_links_of_the_docs_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", text):
        other = page.parent / target if target else page
        assert other.exists(), target
        headings = re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in slugs, f"{target}#{anchor}"


def test_a_constant_schedule_keeps_the_learning_rate(photos: Path, tmp_path: Path, said_by: Callable[..., str]) -> None:
    run = tmp_path / "run"
    said_by("train", photos, *LEARNING, "--schedule", "constant", "--lr", "0.01", "--output", run)
    header, *epochs = (line.split(",") for line in (run / "metrics.csv").read_text().splitlines())
    assert [float(epoch[header.index("lr")]) for epoch in epochs] == [0.01, 0.01]


def test_init_and_resume_exclude_each_other(trained_run: Path, said_by: Callable[..., str]) -> None:
    assert "--init" in said_by("train", "--resume", trained_run, "--init", trained_run, code=2)


def test_a_run_without_a_model_is_no_start(
    photos: Path, trained_run: Path, tmp_path: Path, said_by: Callable[..., str]
) -> None:
    (begun := tmp_path / "begun").mkdir()
    shutil.copy(trained_run / "config.json", begun)
    said = said_by("train", photos, *LEARNING, "--init", begun, "--output", tmp_path / "run", code=2)
    assert str(begun) in said
    assert not (tmp_path / "run").exists()


def test_verify_takes_threads_and_a_runtime(exported: Path, said_by: Callable[..., str]) -> None:
    assert str(exported) in said_by("verify", exported, "--threads", "1", "--runtime", "onnxruntime")


def test_summary_counts_channels(said_by: Callable[..., str]) -> None:
    # The first layer has 32 channels of 4 x 4 patches, and two input channels less for grey.
    grey, colour = (
        int(re.search(r"^parameters +([\d,]+)$", said_by("summary", "carnet_n", *flags), re.M)[1].replace(",", ""))  # type: ignore[index]
        for flags in (["--in-channels", "1"], [])
    )
    assert colour - grey == 2 * 4 * 4 * 32
