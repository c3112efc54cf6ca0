"""The leaderboard as one HTML file that works from a disk: sortable tables, plots as SVG, a gallery of episodes.

It takes `standings` as they are and measures nothing; scripts, styles, plots and pictures are inside the file.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from sam_gym._utils.fetching import atomic_path
from sam_gym.leaderboard.board import RANDOM, UNPROMPTED, oracle_of, task_of
from sam_gym.leaderboard.standings import Standing
from sam_gym.leaderboard.summaries import HEAD, SHARES_HEAD, Environment, Tables, bracketed, shares_closed

HERE = Path(__file__).resolve().parent

COLOURS = {
    **dict.fromkeys(UNPROMPTED, "0.55"),
    RANDOM: "C1",
    "centre": "C2",
    "uncertainty": "C4",
    "iterative box": "C5",
}
ORACLE_COLOUR = "C3"
AGENT_COLOURS = ("C0", "C8", "C9", "C6")


def write_page(
    path: Path, tasks: dict[str, list[Standing]], tables: Tables, pictures: Mapping[str, tuple[Path, str]]
) -> None:
    """Write the page.

    Args:
        path: HTML file.
        tasks: Standings of each task, which are plotted.
        tables: Their numbers, and the manifest that is told.
        pictures: Environment -> the picture of its episodes, and whose they are.
    """
    manifest = tables.manifest
    links = "".join(f'<a href="#{task}">{task}</a>' for task in tasks)
    parts = [
        f"<h1>sam_gym leaderboard</h1><p>Held-out split, at most {manifest['max_objects']} objects of an environment, "
        f"the same episodes for all; SAM {_text(manifest['checkpoint'])}, {_text(manifest['precision'])} decoder. A "
        "click on a column's head sorts by it. Score: (IoU - random) / (oracle - random). Gap closed: share of the way "
        "from the first mask to the oracle. NoC@k: mean prompts to an IoU of k % of those objects that reach it, and "
        "how many do. Failures: last mask empty or worse than the first.</p>"
        f"<nav>{links}</nav>"
    ]
    for task, standings in tasks.items():
        parts.append(f'<section><h2 id="{task}">{task}</h2>')
        if any(one.agents for one in standings):
            parts.append("<p>Agents, and how far they get from the first mask to the oracle:</p>")
            shares = [("agent", [_cell(text) for text in row]) for row in shares_closed(tables.tasks[task])]
            parts.append(_table(SHARES_HEAD, shares))
        parts.append("<p>Over datasets: interquartile mean of scores, 95 % interval by stratified bootstrap.</p>")
        overall = [
            ("", [_cell(name), _cell(str(count), count), _cell(bracketed(score), score.mean)])
            for name, (count, score) in tables.overall[task].items()
        ]
        parts.append(_table(("entry", "datasets", "score"), overall))
        parts.append(_figure(_bars(standings), "Mean IoU of the last mask, 95 % intervals over objects and seeds."))
        for one, shown in zip(standings, tables.tasks[task], strict=True):
            parts.append(_environment(one, shown, pictures.get(one.env_id)))
        parts.append("</section>")
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>sam_gym leaderboard</title>'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f"<style>{style}</style></head><body>{''.join(parts)}<script>{script}</script></body></html>\n"
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _environment(one: Standing, shown: Environment, picture: tuple[Path, str] | None) -> str:
    classes = {"agents": "agent", "oracle": "oracle"}
    rows = [(classes.get(row.kind, ""), [_cell(text) for text in row.cells()]) for row in shown.rows]
    parts = [
        f'<h3 id="{one.env_id}">{one.env_id} <span class="quiet">{shown.objects} objects</span></h3>',
        _table(HEAD, rows),
        _figure(_curves(one), "Mean IoU after each prompt; an entry that stops keeps its last mask."),
    ]
    if picture is not None:
        file, whose = picture
        data = base64.b64encode(file.read_bytes()).decode()
        image = f'<img src="data:image/jpeg;base64,{data}" alt="Four episodes of {one.env_id}">'
        caption = f"Four episodes: {_text(whose)}; from a poor one to a good one, a column a prompt."
        parts.append(_figure(image, caption))
    return "".join(parts)


def _table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A sortable table; rows are their class and their cells."""
    heads = "".join(f'<th scope="col"><button type="button">{_text(name)}</button></th>' for name in head)
    body = "".join(f'<tr class="{kind}">{"".join(row)}</tr>' for kind, row in rows)
    return (
        f'<div class="wide"><table class="sortable"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _cell(text: str, value: float | None = None) -> str:
    """A cell; it is sorted by its value, else by the number that its text begins with, else by the text."""
    if value is None:
        first = text.split(" ")[0]
        try:
            value = float(first.rstrip("%"))
        except ValueError:
            return f'<td data-value="{"" if text == "never" else _text(text)}">{_text(text)}</td>'
    return f'<td data-value="{value:.6g}">{_text(text)}</td>'


def _figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{caption}</figcaption></figure>"


def _colours(standings: Sequence[Standing]) -> dict[str, str]:
    """Entries in the order of tables, and their colours: the same in all plots of a task."""
    names = list(dict.fromkeys(name for one in standings for name in one.rows))
    oracle = oracle_of(standings[0].env_id)
    agents = iter(AGENT_COLOURS * len(names))
    known = {**COLOURS, oracle: ORACLE_COLOUR}
    return {name: known.get(name) or next(agents) for name in sorted(names, key=lambda name: name == oracle)}


def _bars(standings: Sequence[Standing]) -> str:
    """Mean IoU of each entry, grouped by data set."""
    colours = _colours(standings)
    width = 0.82 / len(colours)
    figure, axis = plt.subplots(figsize=(max(6.0, 1.6 * len(standings) + 2), 3.4), layout="constrained")
    for place, (name, colour) in enumerate(colours.items()):
        there = [(x, one.rows[name].iou) for x, one in enumerate(standings) if name in one.rows]
        left = [x + (place - (len(colours) - 1) / 2) * width for x, _ in there]
        ends = [[i.mean - i.low for _, i in there], [i.high - i.mean for _, i in there]]
        axis.bar(left, [i.mean for _, i in there], width * 0.92, yerr=ends, color=colour, label=name,
                 error_kw={"elinewidth": 0.8})  # fmt: skip
    short = [one.env_id.removeprefix(task_of(one.env_id) + "-").rpartition("-")[0] for one in standings]
    axis.set(ylabel="IoU", ylim=(0, 1), xticks=range(len(standings)), xticklabels=short)
    return _svg(figure, axis)


def _curves(one: Standing) -> str:
    """Mean IoU against prompts."""
    figure, axis = plt.subplots(figsize=(7.2, 3.2), layout="constrained")
    for name, colour in _colours([one]).items():
        row = one.rows[name]
        axis.plot(range(len(row.curve)), row.curve, color=colour, marker="o", markersize=3,
                  linewidth=2.2 if row.agent else 1.3, label=name)  # fmt: skip
    longest = max(len(row.curve) for row in one.rows.values())
    axis.set(xlabel="prompts", ylabel="mean IoU", xticks=range(0, longest, max(1, longest // 10)))
    return _svg(figure, axis)


def _svg(figure: Any, axis: Any) -> str:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.25)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    buffer = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sam_gym"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _text(text: str) -> str:
    return html.escape(text)
