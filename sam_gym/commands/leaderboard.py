"""`sam-gym leaderboard`: run, table, check, add. The work is done by `sam_gym.leaderboard`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from sam_gym.commands.common import console

if TYPE_CHECKING:
    from sam_gym.leaderboard.board import Board

Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR")]


def run(
    env: tuple[str, ...] = (),
    entry: tuple[str, ...] = (),
    device: str = "auto",
    board: Folder = None,
    workers: int = 1,
) -> None:
    """Evaluate what is not stored yet with the same hashes; after Ctrl-C the same command goes on.

    For example:

        sam-gym leaderboard run
        sam-gym leaderboard run --env SamPrompt-WBC-v0 --entry random
        sam-gym leaderboard run --board mine

    Each record is of the fixed episodes of the held-out split, real data, the same SAM for all. A board that is not
    there yet is begun, with the published episodes and no agents.

    Args:
        env: Environment ids; default all of the board.
        entry: Names of entries ("random", "oracle clicks", an agent's); default all.
        device: Where SAM and the agents run.
        board: Folder of the board; default benchmarks/ of a clone, else this folder.
        workers: Processes that share the work; the records are the same for any number.
    """
    there = _board(board, begins=True)
    from sam_gym.evaluation.parallel import processes
    from sam_gym.leaderboard.running import run_missing

    with processes(workers) if workers != 1 else nullcontext() as executor:
        said = run_missing(there, env, entry, device, executor)
    print(f"{said}; now: {_command(board, 'table')}")


def table(board: Folder = None) -> None:
    """Print the standings; of a board, write LEADERBOARD.md beside it and leaderboard.html into it, too.

    Without a board the published standings are printed, as this package holds them, and nothing is written.

    Args:
        board: Folder of the board; default benchmarks/ of a clone, else this folder.
    """
    from sam_gym.leaderboard.board import board_here
    from sam_gym.leaderboard.summaries import Tables
    from sam_gym.leaderboard.tables import print_tables, write_tables
    from sam_gym.version import __version__

    if board is None and board_here() is None:
        tables = Tables.read()
        print_tables(tables, console())
        manifest = tables.manifest
        console().print(
            f"\nthe published standings, as sam_gym {__version__} holds them: SAM {manifest['checkpoint']}, held-out "
            f"split, at most {manifest['max_objects']} objects of an environment. The records are in a clone of the "
            "repository, in benchmarks/; --board DIR shows a board of your own"
        )
        return
    there = _board(board)
    print_tables(write_tables(there), console())
    written = (there.folder.parent / "LEADERBOARD.md", there.folder / "leaderboard.html")
    print(f"\nwritten: {', '.join(os.path.relpath(file) for file in written)}")


def check(board: Folder = None) -> None:
    """Check every record: form, summary against its objects, hashes, seeds, real data, clean commit.

    Exit status 1 if something is wrong; it is said what. This needs the extra leaderboard.

    Args:
        board: Folder of the board; default benchmarks/ of a clone, else this folder.
    """
    there = _board(board)
    wrong = there.check()
    for sentence in wrong:
        print(sentence)
    print(f"{len(there.entries())} entries, {len(wrong)} problems")
    if wrong:
        sys.exit(1)


def add(
    file: tyro.conf.Positional[Path],
    name: str,
    by: str,
    env: tuple[str, ...],
    seed: int = 0,
    board: Folder = None,
) -> None:
    """Put an agent, or a record of it, on the board.

    For example:

        sam-gym leaderboard add runs/MINE/model.zip --name "mine" --by "A. Name" --env SamPrompt-WBC-v0
        sam-gym leaderboard add MINE.zip --name "mine" --by "A. Name" --env SamPrompt-WBC-v0 SamPrompt-DSB-v0
        sam-gym leaderboard add record.json --name "mine" --by "A. Name" --env SamPrompt-WBC-v0 --seed 1

    A model is copied, without what only further training needs, and measured by `run`. One with a judge of masks is
    measured twice: by its last mask, and by the mask that its judge thinks best ("mine, best mask"). A record is what
    `run` writes, on another machine, say; it is checked as `check` does, and stands on the board as what it is: not
    measured here.

    Args:
        file: model.zip of sam-gym train, a folder of sam-gym push, hf:OWNER/NAME; or a record.
        name: What tables call it, the same for all its seeds and environments.
        by: Who made it.
        env: Environment ids. An agent of several is kept once.
        seed: Of its training.
        board: Folder of the board; default benchmarks/ of a clone, else this folder.
    """
    from sam_gym.leaderboard.board import Entry
    from sam_gym.leaderboard.running import add_entries

    there = _board(board, begins=True)
    added = add_entries(there, file, [Entry(one, name, seed, by, scripted=False) for one in env])
    follows = "table" if file.suffix == ".json" else "run"
    print(*(f"{entry} is on the board" for entry in added), f"now: {_command(board, follows)}", sep="\n")


COMMANDS: dict[str, Callable[..., None]] = {"run": run, "table": table, "check": check, "add": add}


def _board(folder: Path | None, *, begins: bool = False) -> Board:
    """The board that is meant; one that is not there yet is begun, if the command `begins` boards."""
    from sam_gym.leaderboard.board import Board, BoardError, begin, board_here

    found = board_here() if folder is None else folder
    if found is None:
        way_out = "begin one, or name one, with --board DIR" if begins else "name one with --board DIR"
        raise BoardError(
            "there is no board here (leaderboard_manifest.json, in this folder or in benchmarks/): go into a clone of "
            f"the repository, or {way_out}"
        )
    found = found.resolve()
    if begins:
        from sam_gym.leaderboard.summaries import Tables

        if begin(found, Tables.read().manifest):
            print(f"a new board, with the published episodes: {os.path.relpath(found)}")
    return Board(found)


def _command(board: Path | None, words: str) -> str:
    """A command of the leaderboard on the same board."""
    return f"sam-gym leaderboard {words}" + ("" if board is None else f" --board {board}")
