"""Imports go one way, and the edge and the command line do not import PyTorch."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
from children import finished

import carnet
from carnet.cli.main import COMMANDS

PACKAGE = Path(carnet.__file__).parent
BASE = {
    "errors",
    "config",
    "older_records",
    "machine",
    "spec",
    "preprocess",
    "image_files",
    "prediction",
    "text",
    "metrics",
    "calibration",
    "significance",
    "evaluation",
    "explanation",
    "documents",
    "files",
    "run_folder",
    "hub_models",
}
ALLOWED = {
    **{room: {*BASE, "data", "report", "checks"} for room in (*BASE, "data", "report", "checks")},
    "edge": {*BASE, "edge"},
    "web": {*BASE, "data", "report", "edge", "web"},
    "server": {*BASE, "edge", "web", "server"},
    "models": {*BASE, "data", "report", "models"},
    "timm": {*BASE, "models", "timm"},
    "training": {*BASE, "data", "report", "checks", "edge", "models", "training"},
    "export": {*BASE, "data", "report", "checks", "edge", "models", "training", "export"},
    "comparison": {*BASE, "data", "report", "checks", "edge", "models", "training", "export", "comparison"},
    "model": {*BASE, "data", "report", "checks", "edge", "models", "training", "export"},
    "data_check": {*BASE, "data", "checks", "training"},
}
"""Packages and modules -> those they may import; the command line may import all."""
OPTIONAL = {"rich", "matplotlib", "openvino", "datasets", "huggingface_hub", "torch_xla"}
"""Packages that code without PyTorch uses if they are installed, or names the extra that installs them."""
BENCH_ONLY = {"torch", "torchvision", "lightning_fabric", "safetensors", "timm"}


def imports(path: Path) -> set[str]:
    """Return every module that a file imports, anywhere in the file."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room not in ALLOWED:
        assert room in ("__init__", "__main__", "cli"), f"{room} belongs to no layer"
        return
    modules = imports(path)
    rooms = {module.split(".")[1] for module in modules if module.startswith("carnet.")}
    assert rooms <= ALLOWED[room]
    if room not in ("models", "timm", "training", "export", "comparison"):
        assert not {module.split(".")[0] for module in modules} & BENCH_ONLY


def test_packages_used_without_pytorch_are_base_dependencies() -> None:
    """Checks every import of the base layer, the data, the reports, the edge and the page, anywhere in a file."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split("[<>=]", requirement)[0] for requirement in project["dependencies"]}
    rooms = [
        *(PACKAGE / f"{room}.py" for room in BASE),
        *(PACKAGE / room for room in ("data", "report", "checks", "edge", "web")),
    ]
    paths = [path for room in rooms for path in (sorted(room.rglob("*.py")) if room.is_dir() else [room])]
    packages = {module.split(".")[0] for path in paths for module in imports(path)} - set(sys.stdlib_module_names)
    assert {"pillow" if package == "PIL" else package for package in packages} - {"carnet"} - OPTIONAL <= declared


def modules_after(code: str) -> set[str]:
    """Return the heavy packages that a new Python process has imported after running `code`."""
    heavy = "{'torch', 'onnxruntime', 'matplotlib', 'lightning_fabric', 'PIL', 'numpy', 'tyro'}"
    script = f"import sys\n{code}\nprint(*sorted({heavy} & set(sys.modules)))"
    answer = finished([sys.executable, "-c", script], check=True)
    return set(answer.stdout.splitlines()[-1].split())


def test_importing_carnet_imports_nothing_heavy() -> None:
    assert modules_after("import carnet; carnet.__version__; dir(carnet)") == set()


def test_help_imports_nothing_heavy() -> None:
    assert modules_after("from carnet.cli.main import run; run(['--help']); run([]); run(['--version'])") == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_commands_imports_no_torch(command: str) -> None:
    assert not modules_after(f"from carnet.cli.main import run; run(['{command}', '--help'])") & {"torch", "matplotlib"}


def test_the_base_layer_imports_no_torch() -> None:
    rooms = ", ".join(f"carnet.{room}" for room in sorted(BASE))
    code = f"import {rooms}, carnet.data.scan, carnet.data.synthetic, carnet.report.html, carnet.report.findings"
    assert not modules_after(code) & {"torch", "lightning_fabric"}


def test_the_tests_above_can_fail() -> None:
    assert "torch" in modules_after("import carnet; carnet.create_model")
