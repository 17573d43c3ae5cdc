"""`carnet completion`: write the script with which a shell completes commands and flags."""

from __future__ import annotations

import contextlib
import importlib
import io
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from carnet.cli.main import COMMANDS, flags_of_command, print_json, registry
from carnet.errors import MissingExtraError

Shell = Literal["bash", "zsh", "fish"]
_PATHS = {
    "bash": {
        "complete -F": "complete -o default -F",
        # One empty line stands for no match.
        'matches+=("$completion")': '[[ -z "$completion" ]] || matches+=("$completion")',
        # Readline's own completion of paths knows names with blanks.
        'COMPREPLY=($(compgen -f -- "$cur"))': "COMPREPLY=()",
        # Where a path may stand, flags are offered after a hyphen alone.
        'COMPREPLY=("${matches[@]}")': 'COMPREPLY=("${matches[@]}")\n'
        '  [[ -z "${COMP_WORDS[COMP_CWORD]}" && COMP_CWORD -gt 1 && "${COMPREPLY[0]}" == -* ]] && COMPREPLY=()',
    },
    "zsh": {
        "_describe 'carnet completions' completion_array": "_describe 'carnet completions' completion_array\n"
        '  (( CURRENT == 2 )) || [[ "${words[CURRENT]}" == -* ]] || _files'
    },
    "fish": {"complete --no-files": "complete"},
}
"""Shell -> what to change in tyro's script, which completes paths only after flags that take them."""


@dataclass(frozen=True)
class Command:
    """Write the script with which a shell completes commands, flags, values and paths; new terminals read it.

    bash needs the package bash-completion, zsh ~/.zfunc in fpath before compinit.

    Examples:
      mkdir -p ~/.local/share/bash-completion/completions
      carnet completion bash > ~/.local/share/bash-completion/completions/carnet
      carnet completion zsh > ~/.zfunc/_carnet
      carnet completion fish > ~/.config/fish/completions/carnet.fish
    """

    shell: Annotated[Shell, tyro.conf.Positional]
    """The shell."""
    json: bool = False
    """Print the script as one JSON document."""

    def run(self) -> int:
        script = completion(self.shell)
        if self.json:
            print_json({"shell": self.shell, "script": script})
        else:
            print(script)
        return 0


def completion(shell: Shell) -> str:
    """Return the script for a shell; what it does not know is a path.

    Raises:
        MissingExtraError: with a version of tyro that writes other scripts.
    """
    app = tyro.extras.SubcommandApp()
    for name in COMMANDS:
        app.command(name=name)(flags_of_command(importlib.import_module(f"carnet.cli.{name}").Command))
    written = io.StringIO()
    try:
        with contextlib.redirect_stdout(written), contextlib.suppress(SystemExit):
            app.cli(
                prog="carnet",
                args=["--tyro-write-completion", shell, "-"],
                config=(tyro.conf.FlagCreatePairsOff,),
                registry=registry(),
            )
    except AssertionError:
        # So earlier versions of tyro refuse a shell.
        written = io.StringIO()
    script = written.getvalue()
    for before, after in _PATHS[shell].items():
        if before not in script:
            needed = "tyro 1.0.14 or later, whose scripts it changes"
            raise MissingExtraError(f"carnet completion {shell}", needed, install="--upgrade carnet tyro")
        script = script.replace(before, after)
    return script
