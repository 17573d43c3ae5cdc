"""Measure the code: files, lines, long functions, import cycles, and functions entered before the first gradient.

All lines of a file count; the lines of a function go from its `def` to its end. An import cycle is a maximal set of
modules that import each other: at module level by imports that run with the module, in all also by imports in functions
and imports for types; names that `carnet/__init__.py` imports on demand count if that file spells out their imports.
Functions entered are those of `carnet train` on drawn photos with an empty cache, up to the first backward pass, which
belongs to a trial step that measures the machine, and up to the first one of training (`entered_functions.py`).

Example:
  python benchmarks/house.py --name house-before
  python benchmarks/house.py --commit HEAD~1
  python benchmarks/house.py --list
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from worktree import ROOT, commit_name, environment_of, worktree

MAX_FILE_LINES, MAX_FUNCTION_LINES = 450, 50
PACKAGE = "carnet"
MOMENTS = ("first gradient", "first gradient of training")
Graph = dict[str, set[str]]
"""Module -> modules it imports."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", help="another commit to measure, shown beside the present files")
    parser.add_argument("--list", action="store_true", help="list the functions that are entered")
    parser.add_argument("--only-read", action="store_true", help="only read the files, without training")
    parser.add_argument("--name", default="house", help="name of the dated result, which replaces one of the same day")
    parser.add_argument("--no-result", action="store_true", help="do not write a dated result")
    options = parser.parse_args()
    counts: dict[str, dict[str, Any]] = {}
    if options.commit:
        hash_ = commit_name(options.commit)
        with worktree(hash_) as tree:
            counts[hash_] = count(tree, train=not options.only_read)
    counts["present"] = count(ROOT, train=not options.only_read)
    if options.list:
        for name, found in counts.items():
            for moment, functions in found["entered"].items():
                print(*(f"{name}, before the {moment}: {function}" for function in functions), sep="\n")
    print(table(counts))
    if not options.no_result:
        from environment import write_result

        arguments = " ".join(argument for argument in sys.argv[1:] if argument != "--list")
        print(write_result(options.name, f"python benchmarks/house.py {arguments}".strip(), {"counts": counts}))


def count(tree: Path, *, train: bool = True) -> dict[str, Any]:
    """Measure one tree.

    Args:
        tree: the root of a work tree.
        train: whether to count the functions entered in training, which takes half a minute.
    """
    package = tree / PACKAGE
    sources = {path: path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))}
    names = {path: path.relative_to(tree).as_posix() for path in sources}
    lines = {names[path]: len(source.splitlines()) for path, source in sources.items()}
    trees = {names[path]: ast.parse(source) for path, source in sources.items()}
    functions = {f"{name}:{label}": size for name, parsed in trees.items() for label, size in function_lines(parsed)}
    return {
        "files": len(lines),
        "lines": sum(lines.values()),
        "long_files": {name: size for name, size in lines.items() if size > MAX_FILE_LINES},
        "functions": len(functions),
        "long_functions": {name: size for name, size in functions.items() if size > MAX_FUNCTION_LINES},
        "cycles_at_module_level": cycles(import_graph(trees, only_module_level=True)),
        "cycles_in_all": cycles(import_graph(trees, only_module_level=False)),
        "entered": entered(tree) if train else {},
    }


def function_lines(parsed: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield every function with its number of lines, also those inside classes and other functions."""

    def walk(node: ast.AST, where: str) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{where}{child.name}"
                if not isinstance(child, ast.ClassDef):
                    assert child.end_lineno is not None
                    yield f"{child.lineno} {name}", child.end_lineno - child.lineno + 1
                yield from walk(child, f"{name}.")
            else:
                yield from walk(child, where)

    yield from walk(parsed, "")


def import_graph(trees: Mapping[str, ast.Module], *, only_module_level: bool) -> Graph:
    """Return the modules that each module imports.

    Args:
        trees: the modules by the names of their files, such as `carnet/data/folder.py`.
        only_module_level: whether to leave out imports in functions and imports for types.
    """
    modules = {_module_name(file): (file, parsed) for file, parsed in trees.items()}
    graph: Graph = {}
    for name, (file, parsed) in modules.items():
        package = name if file.endswith("__init__.py") else name.rpartition(".")[0]
        nodes = _run_at_import(parsed) if only_module_level else ast.walk(parsed)
        graph[name] = {target for node in nodes for target in _imported(node, package, modules)} - {name}
    return graph


def _module_name(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the statements that run when a module is imported, also those in the bodies of classes."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for statement in child.orelse:
                yield statement
                yield from _run_at_import(statement)
            continue
        yield child
        yield from _run_at_import(child)


def _imported(node: ast.AST, package: str, modules: Mapping[str, Any]) -> Iterator[str]:
    """Yield the modules that a statement imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in modules)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = package.split(".")
            base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
        for alias in node.names:
            # A name of a package is a module, or defined in its __init__.py.
            inside = f"{base}.{alias.name}"
            if inside in modules or base in modules:
                yield inside if inside in modules else base


def cycles(graph: Graph) -> list[list[str]]:
    """Return the maximal sets of more than one module that import each other."""
    reached = {module: _reached(module, graph) for module in graph}
    groups = {tuple(sorted(other for other in reached[module] if module in reached[other])) for module in graph}
    return [list(group) for group in sorted(groups) if len(group) > 1]


def _reached(module: str, graph: Graph) -> set[str]:
    """Return the modules that are imported with this one, including itself."""
    found, waiting = {module}, [module]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def entered(tree: Path) -> dict[str, list[str]]:
    """Return the functions that `carnet train` enters before the first gradient, and before the first one of training.

    Raises:
        SystemExit: if training fails, or computes no gradient.
    """
    from equal_weights import draw_photos

    with tempfile.TemporaryDirectory(prefix="carnet-house-") as folder:
        root = Path(folder).resolve()
        photos, out = draw_photos(root / "photos"), root / "entered.json"
        script = Path(__file__).with_name("entered_functions.py")
        command = [sys.executable, str(script), str(out), str(photos), str(root / "run")]
        # Start elsewhere, since Python would import `carnet` from the current folder.
        done = subprocess.run(
            command, cwd=root, env=environment_of(tree, root / "cache"), capture_output=True, text=True, check=False
        )
        if not out.exists():
            sys.exit(f"there was no gradient in {tree}:\n{done.stderr}")
        found: dict[str, list[str]] = json.loads(out.read_text(encoding="utf-8"))
    return found


ROWS: Mapping[str, Any] = {
    "files": lambda found: found["files"],
    "lines": lambda found: found["lines"],
    f"files above {MAX_FILE_LINES} lines": lambda found: len(found["long_files"]),
    "functions": lambda found: found["functions"],
    f"functions above {MAX_FUNCTION_LINES} lines": lambda found: len(found["long_functions"]),
    "import cycles at module level": lambda found: len(found["cycles_at_module_level"]),
    "modules in them": lambda found: sum(map(len, found["cycles_at_module_level"])),
    "import cycles with functions' imports": lambda found: len(found["cycles_in_all"]),
    "modules in these": lambda found: sum(map(len, found["cycles_in_all"])),
    **{
        f"functions entered before the {moment}": lambda found, moment=moment: len(found["entered"].get(moment, []))
        for moment in MOMENTS
    },
    **{
        f"files entered before the {moment}": lambda found, moment=moment: num_files(found["entered"].get(moment, []))
        for moment in MOMENTS
    },
}


def num_files(functions: Sequence[str]) -> int:
    """Return the number of files of some functions."""
    return len({function.partition(":")[0] for function in functions})


def table(counts: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the counts side by side."""
    rows: list[Sequence[Any]] = [("", *counts)]
    rows += [(name, *(number(found) for found in counts.values())) for name, number in ROWS.items()]
    if not any(found["entered"] for found in counts.values()):
        rows = [row for row in rows if "entered" not in row[0]]
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{row[0]:{width}}" + "".join(f"{cell!s:>14}" for cell in row[1:]) for row in rows)


if __name__ == "__main__":
    main()
