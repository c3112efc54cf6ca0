"""The command `sam-gym`: which commands there are, and how they end. Each is a module in `sam_gym.commands`.

Whatever is slow to import is imported by the command that needs it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence

import tyro

from sam_gym.commands import cache, leaderboard
from sam_gym.commands.common import say
from sam_gym.commands.encode import encode
from sam_gym.commands.evaluate import evaluate
from sam_gym.commands.export import export
from sam_gym.commands.listing import fetch, list_environments
from sam_gym.commands.play import play
from sam_gym.commands.push import push
from sam_gym.commands.render import render
from sam_gym.commands.segment import segment
from sam_gym.commands.train import train

DESCRIPTION = """Environments in which a frozen SAM is the world; and masks for images of your own.

    sam-gym list                                     all environments, and where their data are
    sam-gym fetch SamPrompt-ISBI-v0 mobile_sam       data and weights, ahead of a run
    sam-gym encode SamPrompt-ISBI-v0                 embed a dataset's images, or those of a folder
    sam-gym evaluate SamPrompt-ISBI-v0               measure prompters and trained agents
    sam-gym render SamPrompt-ISBI-v0 --out film.gif  look at an episode
    sam-gym train --env SamPrompt-WBC-v0             train an agent
    sam-gym leaderboard table                        the standings; also run, check, add
    sam-gym segment --images DIR --boxes FILE --out DIR
                                                     segment images of your own
    sam-gym play --images DIR                        the same in a browser, by hand; also play, watch
    sam-gym push runs/NAME/model.zip OWNER/NAME      share an agent on the Hugging Face Hub
    sam-gym export SamPrompt-ISBI-v0 --dataset NAME-v0
                                                     episodes as a Minari dataset
    sam-gym cache info                               the embeddings that are kept: info, verify, prune

Data are looked for in $SAM_GYM_DATA, then in the cache: $SAM_GYM_CACHE, else the user's cache folder. Embeddings are
kept in $SAM_GYM_EMBEDDINGS, else in "embeddings" in the cache.
"""

COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_environments,
    "fetch": fetch,
    "encode": encode,
    "evaluate": evaluate,
    "render": render,
    "train": train,
    "segment": segment,
    "play": play,
    "push": push,
    "export": export,
}

GROUPS = {
    "leaderboard": (leaderboard.COMMANDS, "Standings of prompters and agents: run, table, check, add."),
    "cache": (cache.COMMANDS, "Look after the embedding cache: info, verify, prune."),
}
"""Commands that have commands of their own, and a line about them."""

COMPLETION, SHELLS = "--tyro-print-completion", ("bash", "zsh", "fish")
"""An option of tyro's, and the shells that it knows by itself."""


def _app(arguments: Sequence[str]) -> tyro.extras.SubcommandApp:
    app = _group(COMMANDS, arguments)
    for name, (commands, line) in GROUPS.items():
        app.command(_group(commands, arguments[1:]), name=name, help=line)
    return app


def _group(commands: Mapping[str, Callable[..., None]], arguments: Sequence[str]) -> tyro.extras.SubcommandApp:
    app = tyro.extras.SubcommandApp()
    listing = not arguments or arguments[0] not in commands
    for name, command in commands.items():
        # tyro has one text for the list of commands and a command's own --help: a line there, all of it here.
        first_line = str(command.__doc__).splitlines()[0]
        app.command(name=name, help=first_line if listing else None)(command)
    return app


def _print_completion(arguments: Sequence[str]) -> None:
    """Print tyro's completion script, but for line breaks in help texts: a shell takes what follows for options."""
    if len(arguments) != 2 or arguments[1] not in SHELLS:
        raise ValueError(f"{COMPLETION} SHELL prints completions for {', '.join(SHELLS)}")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        _app([]).cli(prog="sam-gym", args=arguments)
    print(re.sub("^COMPLETION_SPEC = .*$", lambda spec: spec[0].replace("\\n", " "), printed.getvalue(), flags=re.M))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; errors go to stderr without a traceback, with exit status 1 (130 after Ctrl-C)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # Before torch is loaded: compute threads that wait by spinning take the cores from whoever else has work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with warnings.catch_warnings():  # restores showwarning
        warnings.showwarning = lambda message, *_: say(f"warning: {message}")
        try:
            if arguments and arguments[0] == COMPLETION:
                return _print_completion(arguments)
            _app(arguments).cli(prog="sam-gym", description=DESCRIPTION, args=arguments)
        except (ValueError, RuntimeError, OSError) as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt as stopped:
            say(str(stopped) or "stopped")
            sys.exit(130)
