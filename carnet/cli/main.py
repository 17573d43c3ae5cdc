"""`carnet`: find the command, parse its flags, turn errors into one line and an exit code.

A command is a dataclass named `Command` in the file of its name: fields are flags (tyro makes them from types,
defaults and the text below each), the docstring is the help, `run()` returns the exit code. Only the command that was
asked for is imported, and what it works with only inside `run()`, so that `carnet --help` answers at once.

Where a command's words go: with --json one document on standard output, everything else on standard error.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Never, Union, get_args, get_origin

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
from carnet.report.console import Console, silence
from carnet.text import is_command, printable

if TYPE_CHECKING:
    from carnet.config import TrainingConfig

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
    open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding lacks is no reason to fail; a file or another program gets it as it is.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", encoding=None if stream.isatty() else "utf-8")
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    name, *rest = arguments or ["--help"]
    try:
        code = 0
        if (answer := _answer(name)) is None:
            smaller = _SMALLER.get(name)
            way_out = "close other programs" + (f", or take a smaller {smaller}" if smaller else "")
            with explaining_lack_of_memory(f"carnet {name}", way_out):
                code = _run_command(name, rest)
        else:
            print(answer)
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
        from carnet.report.console import is_broken_pipe

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


def parse(command: type[Any], name: str, arguments: Sequence[str], default: Any = None) -> Any:
    """Make a command of its flags; `default` gives defaults other than the dataclass's own.

    Raises:
        SystemExit: with 0 after --help, 2 for flags that do not parse.
    """
    import tyro

    return tyro.cli(
        command,
        prog=f"carnet {name}",
        description=inspect.getdoc(command),
        args=arguments,
        default=tyro.MISSING_NONPROP if default is None else default,
        config=(tyro.conf.FlagCreatePairsOff,),
        registry=_registry(),
    )


def _registry() -> Any:
    """How values are written: `auto` is None, which leaves a choice open; switches are on and off."""
    import tyro
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

    registry = ConstructorRegistry()
    registry.struct_rule(_recipe_in_groups)

    @registry.primitive_rule
    def auto_is_none(info: Any) -> Any:
        kind = _one_or_none(info.type)
        if kind is bool or get_origin(kind) is Literal:
            values = {"on": True, "off": False} if kind is bool else {str(value): value for value in get_args(kind)}
            values = {"auto": None} | values
            words = {value: word for word, value in values.items()}
            return PrimitiveConstructorSpec(
                nargs=1,
                metavar="{" + ",".join(values) + "}",
                choices=tuple(values),
                instance_from_str=lambda given: values[given[0]],
                is_instance=lambda value: value in words,
                str_from_instance=lambda value: [words[value]],
            )
        if kind in (int, float):
            return PrimitiveConstructorSpec(
                nargs=1,
                metavar="INT" if kind is int else "FLOAT",
                instance_from_str=lambda given: None if given[0] == "auto" else kind(given[0]),
                is_instance=lambda value: value is None or isinstance(value, kind),
                str_from_instance=lambda value: ["auto" if value is None else str(value)],
            )
        if kind is str:
            is_place = tyro.conf.Positional in info.markers
            return PrimitiveConstructorSpec(
                nargs=1,
                metavar="STR",
                # A folder of images may have any name.
                instance_from_str=lambda given: None if given[0] in ("none", "auto") and not is_place else given[0],
                is_instance=lambda value: value is None or isinstance(value, str),
                str_from_instance=lambda value: ["none" if value is None else value],
            )
        return None

    return registry


def _recipe_in_groups(info: Any) -> Any:
    """Group a recipe's flags in the help; each keeps its name."""
    import tyro
    from tyro.constructors import StructConstructorSpec, StructFieldSpec

    from carnet.config import GROUPS, TrainingConfig

    if info.type is not TrainingConfig:
        return None
    given = info.default if isinstance(info.default, TrainingConfig) else TrainingConfig()
    groups: list[StructFieldSpec] = []
    for name, kind in GROUPS.items():
        default = kind(**{field.name: getattr(given, field.name) for field in fields(kind)})
        flags: Any = Annotated[kind, tyro.conf.OmitArgPrefixes]
        groups.append(StructFieldSpec(name, flags, default))

    def build(**parts: Any) -> TrainingConfig:
        return TrainingConfig(**{name: value for part in parts.values() for name, value in vars(part).items()})

    return StructConstructorSpec(instantiate=build, fields=tuple(groups))


def _one_or_none(kind: Any) -> Any:
    """The type beside None in a union of two; None for any other type."""
    if get_origin(kind) not in (Union, UnionType):
        return None
    kinds = [option for option in get_args(kind) if option is not NoneType]
    if len(kinds) != 1 or len(get_args(kind)) != 2:
        return None
    return get_args(kinds[0])[0] if get_origin(kinds[0]) is Annotated else kinds[0]


def parse_with_recipe(
    command: type[Any], name: str, arguments: Sequence[str], recipe_of: Callable[[Any], TrainingConfig]
) -> Any:
    """Read the flags, with the recipe that they name as the defaults of the recipe's own flags.

    Args:
        command: has a field `recipe`, and defaults for all others.
        name: of the command.
        arguments: its flags.
        recipe_of: the recipe, given the command as read with the recommended one.
    """
    arguments = [_renamed(word) for word in arguments]
    first = parse(command, name, arguments)
    recipe = recipe_of(first)
    return first if recipe == type(recipe)() else parse(command, name, arguments, command(recipe=recipe))


def _renamed(word: str) -> str:
    """A flag of version 0.1 as it is called now; any other word as it is."""
    flag, equals, value = word.partition("=")
    return _RENAMED_FLAGS.get(flag, flag) + equals + value


def _answer(name: str) -> str | None:
    """What to say at once; None if `name` is a command's."""
    if name in ("-h", "--help", "help"):
        return _HELP.format(commands="\n".join(f"  {command:10}{does}" for command, does in COMMANDS.items()))
    return f"carnet {__version__}" if name == "--version" else None


def _run_command(name: str, arguments: list[str]) -> int:
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean carnet {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise ConfigError(f"unknown command {name!r}; {hint}")
    command = importlib.import_module(f"carnet.cli.{name}").Command
    parser = getattr(command, "parse", None)
    try:
        parsed = parser(arguments) if parser else parse(command, name, arguments)
    except SystemExit as end:
        return int(end.code or 0)
    try:
        return int(parsed.run())
    except ModuleNotFoundError as error:
        raise MissingExtraError.explaining(error, f"carnet {name}") or error from None


def open_closed_streams() -> None:
    """Let standard output and standard error that whoever called has closed (`>&-`) lead nowhere.

    Python has no stream then, and the first file that is opened would take the number that libraries write their
    messages to.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # Open for as long as the process lives, as these streams are.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115


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
