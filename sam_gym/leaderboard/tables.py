"""The tables of a board: LEADERBOARD.md and leaderboard.html in a folder, and rich tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from sam_gym.evaluation import report
from sam_gym.leaderboard.board import NEEDS_EXTRA, US, Board, BoardError
from sam_gym.leaderboard.gallery import picture_file, picture_of
from sam_gym.leaderboard.standings import Row, Standing, by_task, environment_of, over_datasets, standing
from sam_gym.leaderboard.summaries import (
    HEAD,
    PACKAGED,
    SHARES_HEAD,
    Environment,
    Overall,
    Tables,
    bracketed,
    shares_closed,
)

PRINTED = ("entry", "seeds", "IoU@0", "IoU", "95 % interval", "score", "gap closed", "prompts")
"""Columns that a terminal has room for."""

NARROW = (0, 2, 4, 6, 7)
"""Of `SHARES_HEAD`, what 80 columns have room for."""

Standings = dict[str, list[Standing]]
"""Task -> its environments."""


def standings_of(board: Board) -> Standings:
    """All that is stored.

    Raises:
        BoardError: Nothing is.
    """
    tasks = by_task([standing(board, env_id) for env_id in board.manifest["environments"]])
    if not tasks:
        raise BoardError(f"{board.folder} holds no records yet: sam-gym leaderboard run --board {board.folder}")
    return tasks


def write_tables(board: Board) -> Tables:
    """Write LEADERBOARD.md beside a board and leaderboard.html into it; the package's standings if it is its board."""
    try:
        from sam_gym.leaderboard.page import write_page
    except ImportError as error:
        raise BoardError(f"the page cannot be drawn, {NEEDS_EXTRA} ({error})") from error
    tasks = standings_of(board)
    tables = tables_of(board, tasks)
    (board.folder.parent / "LEADERBOARD.md").write_text(markdown(board, tasks, tables), encoding="utf-8")
    pictures = {env_id: picture_file(board, env_id) for env_id in board.manifest["environments"]}
    there = {env_id: (file, picture_of(file)) for env_id, file in pictures.items() if file.is_file()}
    write_page(board.folder / "leaderboard.html", tasks, tables, there)
    if board.folder == PACKAGED.parents[2] / "benchmarks":  # a clone's own, not a board that somebody else began
        tables.write(PACKAGED)
    return tables


def tables_of(board: Board, tasks: Standings) -> Tables:
    """The numbers of all tables."""
    environments = {task: [environment_of(one) for one in standings] for task, standings in tasks.items()}
    return Tables(board.manifest, environments, {task: over_datasets(one) for task, one in tasks.items()})


def print_tables(tables: Tables, console: Console) -> None:
    """All tables, in the terminal."""
    columns = [HEAD.index(name) for name in PRINTED]
    for task, environments in tables.tasks.items():
        console.print(f"\n[bold]{task}[/]")
        if rows := shares_closed(environments):
            shown = range(len(SHARES_HEAD)) if console.width >= 115 else NARROW
            head, rows = [SHARES_HEAD[i] for i in shown], [[row[i] for i in shown] for row in rows]
            console.print(_table("agents, and how far they get from the first mask to the oracle", head, rows))
        title = "over datasets: interquartile mean of scores, 95 % interval by stratified bootstrap"
        console.print(_table(title, ("entry", "datasets", "score"), _overall_rows(tables.overall[task])))
        for one in environments:
            rows = [[row.cells()[column] for column in columns] for row in one.rows]
            console.print(_table(f"{one.env_id}: {one.objects} objects", PRINTED, rows))
    console.print(
        "\nIoU@0, IoU: mean IoU of the first and the last mask; the interval resamples objects and seeds. score: "
        "(IoU - random) / (oracle - random). gap closed: share of the way from the first mask to the oracle."
    )


def _table(title: str, head: Sequence[str], rows: list[list[str]]) -> Table:
    table = Table(
        title=f"\n{title}", title_justify="left", title_style="italic", box=box.SIMPLE_HEAD, show_edge=False,
        pad_edge=False, collapse_padding=True,
    )  # fmt: skip
    for number, name in enumerate(head):
        words = number == 0 or name == ""
        table.add_column(name, justify="left" if words else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _overall_rows(overall: Overall) -> list[list[str]]:
    return [[name, str(n), bracketed(score)] for name, (n, score) in overall.items()]


def markdown(board: Board, tasks: Standings, tables: Tables) -> str:
    """LEADERBOARD.md: the numbers of `tables`, linked to the records that they come from."""
    manifest = tables.manifest
    every = [row for standings in tasks.values() for one in standings for row in one.rows.values()]
    minutes = sum(record.seconds for row in every for record in row.records) / 60
    parts = [
        "# Leaderboard\n\nWritten by `sam-gym leaderboard table` from the records that each entry links to (one a "
        "seed); `sam-gym leaderboard check` says whether they hold good. Held-out split, at most "
        f"{manifest['max_objects']} objects of an environment, the same episodes for all; SAM "
        f"{manifest['checkpoint']}, {manifest['precision']} decoder. Evaluating all of it takes {minutes:.0f} minutes, "
        "encoding left out, where each record says.\n\n"
        "- IoU@0, IoU: mean IoU of the first and the last mask; the interval resamples objects and seeds.\n"
        "- score: (IoU - random) / (oracle - random). gap closed: share of the way from the first mask to the oracle.\n"
        "- NoC@k: mean prompts to an IoU of k % of those objects that reach it, and in brackets how many do.\n"
        "- failures: last mask empty or worse than the first. decodes: masks that SAM decoded for an object.\n"
    ]
    for task, standings in tasks.items():
        parts.append(f"\n## {task}\n\n")
        if any(one.agents for one in standings):
            aligned = ["---", "---:", "---", *["---:"] * (len(SHARES_HEAD) - 3)]
            agents = report.markdown([SHARES_HEAD, aligned, *shares_closed(tables.tasks[task])])
            parts.append(f"Agents, and how far they get from the first mask to the oracle:\n\n{agents}\n")
        parts.append("Over datasets: interquartile mean of scores over datasets and seeds, with a 95 % "
                     "interval by stratified bootstrap.\n\n")  # fmt: skip
        overall = _overall_rows(tables.overall[task])
        parts.append(report.markdown([["entry", "datasets", "score"], ["---", "---:", "---:"], *overall]))
        shown = zip(standings, tables.tasks[task], strict=True)
        parts += [_environment_markdown(board, one, environment) for one, environment in shown]
    return "".join(parts)


def _environment_markdown(board: Board, one: Standing, shown: Environment) -> str:
    """An environment's table, and how its agents compare with the best entry that needs no training."""
    rows = [
        [_linked(board, row), *summary.cells()[1:]]
        for row, summary in zip(one.rows.values(), shown.rows, strict=True)
    ]  # fmt: skip
    table = report.markdown([list(HEAD), ["---", *["---:"] * (len(HEAD) - 1)], *rows])
    parts = [f"\n### {one.env_id}: {shown.objects} objects\n\n", table]
    rival = one.rival()
    for row in one.agents:
        if rival is not None and (compared := one.against_rival(row)) is not None:
            difference, better = compared
            parts.append(f"\n{row.name} - {rival.name}, the best entry without truth or training: "
                         f"{bracketed(difference)}; better on an object with probability "
                         f"{bracketed(better)}.\n")  # fmt: skip
    return "".join(parts)


def _linked(board: Board, row: Row) -> str:
    files = [board.relative(board.record_file(entry)) for entry in row.entries]
    links = [f"[{row.name}]({files[0]})", *(f"[{n}]({file})" for n, file in enumerate(files[1:], start=2))]
    return " ".join(links) + ("" if row.by == US else f" (by {row.by})")
