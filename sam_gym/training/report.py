"""What a run, or an evaluation of its model, leaves to look at: table, learning curve, film strip, record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sam_gym._utils.fetching import write_json
from sam_gym.envs.base import EngineVectorEnv
from sam_gym.evaluation import report
from sam_gym.evaluation.records import Record
from sam_gym.prompters import Prompter


def write_report(
    folder: Path,
    title: str,
    records: list[Record],
    agent: Prompter,
    pictures: EngineVectorEnv,
    state: dict[str, Any],
) -> None:
    """Table on the screen and as Markdown, learning_curve.png, episodes.png and record.json."""
    print()
    report.print_table(records, f"{records[0].provenance['split']} split, {len(records[0].iou)} objects ({title})")
    (folder / "table.md").write_text(report.markdown_table(records), encoding="utf-8")
    report.plot_learning(folder / "learning_curve.png", state["points"], records, title)
    report.save_film_strip(folder / "episodes.png", agent, records[-1], pictures)
    entries = [record.summary() for record in records]
    write_json(folder / "record.json", {**report.provenance(), **state, "evaluation": entries})
