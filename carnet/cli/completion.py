"""`carnet completion`: write the script with which a shell completes commands and flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from carnet.cli.main import completion, print_json


@dataclass(frozen=True)
class Command:
    """Write the script with which a shell completes commands and flags; new terminals read it.

    Examples:
      carnet completion bash > ~/.local/share/bash-completion/completions/carnet
      carnet completion zsh > ~/.zfunc/_carnet     with ~/.zfunc in fpath
      carnet completion fish > ~/.config/fish/completions/carnet.fish
    """

    shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional]
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
