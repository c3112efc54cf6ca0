"""Cloning alone, PPO alone, and both: several seeds each, on the held-out sections; the source of the README's table.

    python benchmarks/recipes.py                 train what is missing (resumes), then write results and print the table
    python benchmarks/recipes.py --seeds 0       one seed only
    python benchmarks/recipes.py --no-train      take the runs that are finished, train nothing
    python benchmarks/recipes.py --stored        write the Markdown again from the stored result, run nothing

Each training is `agents/train_ppo.py` in a folder of its own under runs/recipes/. The result file holds every object's
IoU curve, so that the table can be computed again from it.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from trainings import ROOT, finished

from sam_gym.evaluation import report
from sam_gym.evaluation.bootstrap import bootstrap_mean
from sam_gym.evaluation.records import Record

RESULT = ROOT / "benchmarks" / "results" / "recipes.json"
RECIPES = {"both": [], "ppo_alone": ["--clone-steps", "0", "--ppo-steps", "1600", "--evaluations", "2"]}
"""Run name -> arguments of train_ppo.py. PPO alone is the default recipe without its clone: as many steps of PPO."""
ENTRIES = (
    ("clone alone", "both", "clone_alone"),
    ("PPO alone", "ppo_alone", "agent"),
    ("clone, then PPO", "both", "agent"),
)
"""Row of the table, run that it comes from, evaluation in that run."""
BASELINES = ("box_only", "random", "centre", "oracle_clicks")


@dataclass(frozen=True)
class Arguments:
    """Train and compare the recipes."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds to train."""
    folder: Path = ROOT / "runs" / "recipes"
    """Where the runs are; what is finished there is not run again."""
    train: bool = True
    """Train the runs that are missing; else leave them out of the table."""
    stored: bool = False
    """Only write the Markdown again from the stored result."""


def train(folder: Path, recipe: str, seed: int) -> None:
    """Run one training to its end, taking it up where it was."""
    run = folder / f"{recipe}-seed{seed}"
    for done in folder.glob("*/record.json"):  # baselines do not depend on the run: evaluate them once
        for name in BASELINES:
            target = run / "evaluations" / f"{name}.json"
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(done.parent / "evaluations" / f"{name}.json", target)
    finished(run, ["--data", "real", "--seed", str(seed), *RECIPES[recipe]], train=True)


def load(run: Path, entry: str) -> Record:
    """One stored evaluation."""
    return Record.from_json(json.loads((run / "evaluations" / f"{entry}.json").read_text()))


def paired(curves: dict[str, list[list[float]]]) -> str:
    """What PPO adds to its clone on the same objects, seed by seed, as Markdown.

    Args:
        curves: Name of a row of the table -> IoU after each prompt, of each object.
    """
    rows = [["PPO after cloning - its clone", "IoU", "95 % paired bootstrap interval"], ["---", "---:", "---:"]]
    for name, after in curves.items():
        what, _, seed = name.rpartition(", ")
        if what == "clone, then PPO":
            i = bootstrap_mean(np.array(after)[:, -1] - np.array(curves[f"clone alone, {seed}"])[:, -1])
            rows.append([seed, f"{i.mean:+.3f}", f"{i.low:+.3f} to {i.high:+.3f}"])
    return report.markdown(rows)


def main() -> None:
    """Train what is missing, store, print."""
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.stored:
        table = RESULT.with_suffix(".md").read_text(encoding="utf-8").split("\n\n")[0].rstrip("\n")
        content = json.loads(RESULT.read_text(encoding="utf-8"))
        curves = {record["summary"]["name"]: record["iou"] for record in content["records"]}
        RESULT.with_suffix(".md").write_text(f"{table}\n\n{paired(curves)}", encoding="utf-8")
        return
    records: list[Record] = []
    runs: list[dict[str, Any]] = []
    for title, recipe, entry in ENTRIES:
        for seed in arguments.seeds:
            run = arguments.folder / f"{recipe}-seed{seed}"
            if arguments.train and not (run / "record.json").is_file():
                train(arguments.folder, recipe, seed)
            if not (run / "record.json").is_file():
                continue
            if not records:
                records += [load(run, name) for name in BASELINES]
            record = load(run, entry)
            record.name = f"{title}, seed {seed}"
            records.append(record)
            stored = json.loads((run / "record.json").read_text())
            kept = ("versions", "git_commit", "hardware", "command", "arguments", "config", "points", "best", "seconds")
            runs.append({"entry": record.name, **{name: stored[name] for name in kept}})
    if not records:
        sys.exit(f"no finished run in {arguments.folder}")
    report.print_table(records, f"held-out ISBI sections, {len(records[0].iou)} objects")
    by_recipe: dict[str, list[float]] = {}
    for record in records[len(BASELINES) :]:
        by_recipe.setdefault(record.name.split(", seed")[0], []).append(record.gain.mean)
    for name, gains in by_recipe.items():
        print(f"{name:>16}: gain {np.mean(gains):+.4f} mean of {len(gains)} seeds, lowest {min(gains):+.4f}")
    content = {
        "episodes": [asdict(case) for case in records[0].cases],  # the same for all, see the hash in each summary
        "records": [
            {"summary": r.summary(), "iou": r.iou.tolist(), "prompts": r.prompts.tolist()} for r in records
        ],
        "runs": runs,
    }  # fmt: skip
    text = f"{report.markdown_table(records)}\n{paired({r.name: r.iou.tolist() for r in records})}"
    RESULT.with_suffix(".md").write_text(text, encoding="utf-8")
    RESULT.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"stored in {RESULT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
