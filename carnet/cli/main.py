"""The command line: find the command, parse its flags, turn errors into one line and an exit code.

Each command is a dataclass named `Command` in the file of its name: its fields are flags (tyro derives them from types,
defaults and the text below each field), its docstring is the help, and `run()` returns the exit code. A command with a
field `recipe` also has a method `initial_recipe()`, which returns the defaults of the recipe's flags. Only the command
that is asked for is imported, and each imports heavy packages inside `run()`, so that `carnet --help` answers at once.

With --json, a command prints one JSON document on standard output and everything else on standard error.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import io
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import Field, field, fields, make_dataclass
from functools import cache, partial
from itertools import pairwise
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Never, Union, get_args, get_origin, get_type_hints

from carnet import __version__
from carnet.errors import (
    CarnetError,
    ConfigError,
    LostProcessError,
    MissingExtraError,
    OutOfMemoryError,
    explaining_lack_of_memory,
)
from carnet.files import to_json
from carnet.machine import wait_briefly
from carnet.report.console import Console, is_broken_pipe, silence
from carnet.text import is_control, printable

if TYPE_CHECKING:
    from carnet.config import TrainingConfig

COMMANDS = {
    "demo": "train a small model on drawn images, in about two minutes",
    "check": "find what is wrong with labelled images before training",
    "train": "train an image classifier",
    "evaluate": "evaluate a model on labelled images and write a report",
    "predict": "classify images",
    "compare": "compare networks on your data, with confidence intervals",
    "export": "export a model to one file that runs without PyTorch",
    "serve": "answer over HTTP, with a page for people",
    "push": "upload a run to the Hugging Face Hub, with a model card",
    "card": "write a run as a folder for timm and the Hub, with a model card",
    "verify": "check that an exported model gives the same results on this machine",
    "benchmark": "measure the latency of networks and exported models",
    "summary": "show the layers, parameters and costs of a network",
    "completion": "write the script with which a shell completes commands and flags",
}
"""Command -> its one-line help; each is a file in this folder."""

_RENAMED_FLAGS = {"--start-share": "--initial-size-ratio", "--adam-share": "--adamw-lr-ratio"}
"""Flags of version 0.1 -> their present names."""
_SMALLER = {
    "train": "--micro-batch or --image-size",
    "compare": "--micro-batch or --image-size",
    "evaluate": "--batch-size",
    "predict": "--batch-size",
    "benchmark": "number in --batch-sizes",
    "summary": "--image-size",
    "serve": "--max-batch",
}
"""Command -> the flag to lower when memory runs out."""
_HIDDEN_DEFAULTS = ("None", "none", "False", "''", "")
"""Defaults that the help does not show."""

_HELP = """usage: carnet COMMAND [flags]

Good image classifiers for people with limited hardware.

commands:
{commands}

  carnet COMMAND --help   show the flags of a command, with examples
  carnet --version        show the version

Start with:  carnet demo
Exit codes:  0 success, 1 a check failed, 2 invalid input, 130 stopped by Ctrl-C"""


def main(arguments: Sequence[str] | None = None) -> Never:
    """Run the command line and exit the process."""
    wait_briefly()
    # The caller may have closed standard output or standard error (`>&-`). Then Python has no stream, and the first
    # file to be opened would get the number that libraries write their messages to. Open the null device instead.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # It stays open until the process ends, like any standard stream.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        stream = getattr(sys, name)
        # Escape names that the terminal cannot encode; files and pipes get UTF-8.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", encoding=None if stream.isatty() else "utf-8")
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    name, *rest = arguments or ["--help"]
    try:
        code = 0
        if name in ("-h", "--help", "help"):
            print(_HELP.format(commands="\n".join(f"  {command:11}{does}" for command, does in COMMANDS.items())))
        elif name == "--version":
            print(f"carnet {__version__}")
        else:
            code = _run_command(name, rest)
        if sys.stdout is not None:
            # Python would not report an error at exit.
            sys.stdout.flush()
        return code
    except CarnetError as error:
        # Several processes all meet the same error, except for these two.
        if is_first_process() or isinstance(error, LostProcessError | OutOfMemoryError):
            complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        complain("stopped")
        return 130
    except OSError as error:
        if is_broken_pipe(error):
            # It is no error that the reader of our output has gone (`| head`).
            silence(sys.stdout)
            return 0
        complain(f"{error.filename or 'input or output'}: {error.strerror or error}")
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:
            # Python would fail again at exit, for example on a full disk.
            silence(sys.stdout)
        return 2


def _run_command(name: str, arguments: Sequence[str]) -> int:
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean carnet {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
        raise ConfigError(f"unknown command {name!r}; {hint}")
    way_out = "close other programs" + (f", or use a smaller {_SMALLER[name]}" if name in _SMALLER else "")
    with explaining_lack_of_memory(f"carnet {name}", way_out):
        command = importlib.import_module(f"carnet.cli.{name}").Command
        try:
            parsed = parse(command, name, arguments)
        except SystemExit as end:
            return int(end.code or 0)
        try:
            return int(parsed.run())
        except ModuleNotFoundError as error:
            raise MissingExtraError.explaining(error, f"carnet {name}") or error from None


def parse(command: type[Any], name: str, arguments: Sequence[str]) -> Any:
    """Build a command from its flags; those of a recipe override the command's initial recipe.

    Raises:
        SystemExit: with 0 after --help, 2 for flags that cannot be parsed.
        ConfigError: if a value is out of range.
        RunError: if the recipe of the run to resume cannot be read.
    """
    import tyro

    for old, new in _RENAMED_FLAGS.items():
        arguments = [re.sub(f"^{old}(?==|$)", new, word) for word in arguments]
    # Wrap and indent the text, because tyro joins lines that are not indented.
    width = min(100, shutil.get_terminal_size().columns) - 4
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    wrapped = [text if text.startswith("Example") else textwrap.fill(text, width) for text in paragraphs]
    read = partial(
        tyro.cli,
        prog=f"carnet {name}",
        description=textwrap.indent("\n\n".join(wrapped), "  "),
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
        registry=registry(),
    )
    if not hasattr(command, "initial_recipe"):
        return command(**vars(read(flags_of_command(command))))
    from carnet import config

    def read_with_recipe(recipe: config.TrainingConfig) -> Any:
        values = vars(read(flags_of_command(command, recipe)))
        recipe_values = {
            name: value for group in config.GROUPS for name, value in vars(values.pop(f"{group}_flags")).items()
        }
        return command(**values, recipe=config.TrainingConfig(**recipe_values))

    parsed = read_with_recipe(config.TrainingConfig())
    recipe = parsed.initial_recipe()
    return parsed if recipe == config.TrainingConfig() else read_with_recipe(recipe)


def registry() -> Any:
    """Return how tyro reads values that may be `auto`."""
    import tyro

    rules = tyro.constructors.ConstructorRegistry()
    rules.primitive_rule(_value_or_auto)
    return rules


def flags_of_command(command: type[Any], recipe: TrainingConfig | None = None) -> type[Any]:
    """Build the dataclass of all flags of a command; one with an initial recipe has those of a recipe, in groups."""
    own = [member for member in fields(command) if member.name != "recipe"]
    if not hasattr(command, "initial_recipe"):
        return _flags_of(command, own)
    from carnet.config import GROUPS, TrainingConfig

    recipe = recipe or TrainingConfig()
    return _flags_of(
        command, own, groups={name: _flags_of(kind, fields(kind), recipe) for name, kind in GROUPS.items()}
    )


def _flags_of(
    kind: type[Any],
    members: Iterable[Field[Any]],
    recipe: TrainingConfig | None = None,
    groups: Mapping[str, type[Any]] | None = None,
) -> type[Any]:
    """Build a dataclass of flags for tyro, with the text below each field as its help.

    Args:
        kind: a dataclass.
        members: those of its fields to include.
        recipe: gives the defaults; None: the fields' own.
        groups: dataclasses of further flags, which the help shows under these names.
    """
    import tyro

    types = get_type_hints(kind, include_extras=True)
    texts = _texts_below_fields(kind.__module__).get(kind.__name__, {})
    flags: list[tuple[str, Any, Any]] = []
    for member in members:
        about = tyro.conf.arg(
            prefix_name=False,
            help=texts.get(member.name),
            help_behavior_hint=lambda default: "" if default in _HIDDEN_DEFAULTS else f"(default: {default})",
        )
        default = member.default if recipe is None else getattr(recipe, member.name)
        flags.append((member.name, Annotated[types[member.name], about], field(default=default)))
    for name, group in (groups or {}).items():
        # The command may have a field of this name.
        flags.append(
            (f"{name}_flags", Annotated[group, tyro.conf.arg(name=name, help=" ")], field(default_factory=group))
        )
    return make_dataclass(kind.__name__, flags, kw_only=True)


@cache
def _texts_below_fields(module: str) -> dict[str, dict[str, str]]:
    """Return the text below each field of the classes of a module: class -> field -> text."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except OSError:
        # A frozen program has no source, and so no texts.
        return {}
    return {
        kind.name: {
            ast.unparse(one.target): " ".join(ast.literal_eval(other.value).split())
            for one, other in pairwise(kind.body)
            if isinstance(one, ast.AnnAssign) and isinstance(other, ast.Expr)
        }
        for kind in tree.body
        if isinstance(kind, ast.ClassDef)
    }


def _value_or_auto(info: Any) -> Any:
    """Tell tyro to read and write None as `auto` (strings: `none`), and an optional switch as `on` or `off`."""
    from tyro.conf import Positional
    from tyro.constructors import PrimitiveConstructorSpec

    kinds = [kind for kind in get_args(info.type) if kind is not NoneType]
    if get_origin(info.type) not in (Union, UnionType) or len(kinds) != 1 or len(get_args(info.type)) != 2:
        return None
    kind = get_args(kinds[0])[0] if get_origin(kinds[0]) is Annotated else kinds[0]
    none = "auto"
    choices: dict[str, Any] = {}
    if kind is bool:
        choices = {"auto": None, "on": True, "off": False}
    elif get_origin(kind) is Literal:
        choices = {"auto": None} | {str(value): value for value in get_args(kind)}
    elif kind is str:
        none = "none"
    elif kind not in (int, float):
        return None
    # A positional string is a path, which may be named auto or none.
    nones = () if kind is str and Positional in info.markers else ("auto", none)
    words = {value: word for word, value in choices.items()} or {None: none}
    read: Callable[[str], Any] = choices.__getitem__ if choices else kind
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{" + ",".join(choices) + "}" if choices else kind.__name__.upper(),
        choices=tuple(choices) or None,
        instance_from_str=lambda given: None if given[0] in nones else read(given[0]),
        is_instance=lambda value: value in words or (not choices and isinstance(value, kind)),
        str_from_instance=lambda value: [words.get(value, str(value))],
    )


def complain(text: str) -> None:
    """Print an error on standard error; do nothing if nobody reads it."""
    try:
        print(f"carnet: {printable(text, keep=chr(10))}", file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)


def is_first_process() -> bool:
    """Return whether this process prints: of several that torchrun has started, only the first does."""
    return os.environ.get("RANK", "0") == "0" or "LOCAL_RANK" not in os.environ


def console(as_json: bool) -> Console:
    """Return the console for progress and results."""
    return Console(sys.stderr if as_json else sys.stdout)


def print_json(document: Any) -> None:
    """Print a document as JSON."""
    # A pipe on Windows may have an encoding that readers of JSON do not expect.
    text = to_json(document, ascii_only=(sys.stdout.encoding or "utf-8").lower() not in ("utf-8", "utf8"))
    # Escape control characters, so that no name can control the terminal.
    print("".join(json.dumps(c)[1:-1] if is_control(c) and c != "\n" else c for c in text))


def words(text: str) -> list[str]:
    """Split the value of a flag at its commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def table(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """Align the cells of a table and return its lines; columns in `left` are left-aligned, the others right-aligned."""
    aligned = []
    for place, column in enumerate(zip(*rows, strict=True)):
        width = max(map(len, column))
        aligned.append([cell.ljust(width) if place in left else cell.rjust(width) for cell in column])
    return ["  ".join(cells).rstrip() for cells in zip(*aligned, strict=True)]
