"""`carnet`: find the command, parse its flags, turn errors into one line and an exit code.

A command is a dataclass named `Command` in the file of its name: fields are flags (tyro makes them from types,
defaults and the text below each), the docstring is the help, `run()` returns the exit code. One with a field `recipe`
has a method `initial_recipe()`, which gives the defaults of the recipe's flags. Only the command that was asked for is
imported, and what it works with only inside `run()`, so that `carnet --help` answers at once.

Where a command's words go: with --json one document on standard output, everything else on standard error.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import io
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Never, Union, get_args, get_origin

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
from carnet.text import is_command, printable

COMMANDS = {
    "demo": "watch a CARNet learn drawn pictures, in a few minutes",
    "train": "train a classifier on a folder of photos",
    "evaluate": "judge a trained model and write a report",
    "predict": "classify image files",
    "compare": "tell which network is better on your data, and how sure that is",
    "export": "write a model as one file that runs without PyTorch",
    "verify": "check an exported model on this machine",
    "benchmark": "time networks and exported models on this machine",
    "summary": "show a network's layers, parameters and costs",
}
"""Name -> what it does; each is a file in this folder."""

_RENAMED_FLAGS = {"--start-share": "--initial-size-ratio", "--adam-share": "--adamw-lr-ratio"}
"""Flags of version 0.1 -> what they are called now."""
_SMALLER = {
    "train": "--micro-batch or --image-size",
    "compare": "--micro-batch or --image-size",
    "evaluate": "--batch-size",
    "predict": "--batch-size",
    "benchmark": "number in --batch-sizes",
    "summary": "--image-size",
}
"""Command -> what to lower where memory is short."""

_HELP = """usage: carnet COMMAND [flags]

Good image classifiers for people with limited hardware.

commands:
{commands}

  carnet COMMAND --help   the flags of a command, with an example
  carnet --version        the version

Start with:  carnet demo
Exit codes:  0 done, 1 a check said no, 2 bad input, 130 stopped by Ctrl-C."""


def main(arguments: Sequence[str] | None = None) -> Never:
    """Run the command line and leave the process."""
    wait_briefly()
    # Of standard output and standard error that whoever called has closed (`>&-`), Python has no stream, and the first
    # file that is opened would take the number that libraries write their messages to. Let both lead nowhere.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # Open for as long as the process lives, as these streams are.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        stream = getattr(sys, name)
        # A name that the terminal's encoding lacks is no reason to fail; a file or another program gets it as it is.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", encoding=None if stream.isatty() else "utf-8")
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    name, *rest = arguments or ["--help"]
    try:
        code = 0
        if name in ("-h", "--help", "help"):
            print(_HELP.format(commands="\n".join(f"  {command:10}{does}" for command, does in COMMANDS.items())))
        elif name == "--version":
            print(f"carnet {__version__}")
        else:
            code = _run_command(name, rest)
        if sys.stdout is not None:
            # At the end of Python it would be too late to tell an error.
            sys.stdout.flush()
        return code
    except CarnetError as error:
        # Of several processes each meets the same error, except for these, which only it knows of.
        if is_first_process() or isinstance(error, LostProcessError | OutOfMemoryError):
            complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        complain("stopped")
        return 130
    except OSError as error:
        if is_broken_pipe(error):
            # The reader of our output has gone (`| head`); what it did not want is not an error.
            silence(sys.stdout)
            return 0
        complain(f"{error.filename or 'input or output'}: {error.strerror or error}")
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:
            # What a full disk has not taken, it will not take at the end of Python either.
            silence(sys.stdout)
        return 2


def _run_command(name: str, arguments: Sequence[str]) -> int:
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean carnet {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise ConfigError(f"unknown command {name!r}; {hint}")
    way_out = "close other programs" + (f", or take a smaller {_SMALLER[name]}" if name in _SMALLER else "")
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
    """Make a command of its flags; where it has a recipe, the flags change the initial one that they name.

    Raises:
        SystemExit: with 0 after --help, 2 for flags that do not parse.
        CarnetError: if the initial recipe cannot be read.
    """
    import tyro

    for old, new in _RENAMED_FLAGS.items():
        arguments = [re.sub(f"^{old}(?==|$)", new, word) for word in arguments]
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_value_or_auto)
    read = partial(
        tyro.cli,
        command,
        prog=f"carnet {name}",
        description=inspect.getdoc(command),
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
        registry=registry,
    )
    parsed = read()
    if hasattr(parsed, "recipe") and (recipe := parsed.initial_recipe()) != type(recipe)():
        parsed = read(default=command(recipe=recipe))
    return parsed


def _value_or_auto(info: Any) -> Any:
    """How tyro reads and writes a value or None: None is `auto`, or `none` for a text; switches are on and off."""
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
    # A folder of images may have any name.
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
    """Write a line of its own, or several, on standard error; that nobody reads it is no reason to end."""
    try:
        print(f"carnet: {printable(text, keep=chr(10))}", file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)


def is_first_process() -> bool:
    """Whether this process speaks: of several that torchrun has started, the first one alone."""
    return os.environ.get("RANK", "0") == "0" or "LOCAL_RANK" not in os.environ


def console(as_json: bool) -> Console:
    """For progress and findings."""
    return Console(sys.stderr if as_json else sys.stdout)


def print_json(document: Any) -> None:
    """The one document."""
    # A Windows pipe has an encoding of its own, which whoever reads JSON does not expect.
    text = to_json(document, ascii_only=(sys.stdout.encoding or "utf-8").lower() not in ("utf-8", "utf8"))
    # Names come out of JSON as they are, and yet command no terminal.
    print("".join(json.dumps(c)[1:-1] if is_command(c) and c != "\n" else c for c in text))


def words(text: str) -> list[str]:
    """The parts of a flag that takes several, separated by commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def table(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """Lines of aligned cells: the columns `left` to the left, the others to the right."""
    aligned = []
    for place, column in enumerate(zip(*rows, strict=True)):
        width = max(map(len, column))
        aligned.append([cell.ljust(width) if place in left else cell.rjust(width) for cell in column])
    return ["  ".join(cells).rstrip() for cells in zip(*aligned, strict=True)]
