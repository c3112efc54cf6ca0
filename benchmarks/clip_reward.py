"""Agents that are trained on region-text agreement alone: do their masks agree with the truth, too?

    python benchmarks/clip_reward.py                     train what is missing (resumes), print, store
    python benchmarks/clip_reward.py --datasets WBC      a part of it; the others stay as they are stored
    python benchmarks/clip_reward.py --no-train          take what is trained, leave out the rest

Each training is agents/train_ppo.py with the recipe clip, under runs/clip_reward/: PPO from scratch on the gain
in agreement, its last model. No oracle and no truth is in it; the IoU beside it is measured, and chooses nothing. Rows,
on held-out images: the agents, their first masks, and the prompters that train_ppo.py compares an agent with.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from held_out import env_id_of
from numpy.typing import NDArray
from trainings import ROOT, finished, from_root

from sam_gym._utils.fetching import atomic_path
from sam_gym.evaluation import record_file, report
from sam_gym.evaluation.bootstrap import bootstrap_runs
from sam_gym.evaluation.records import Record

RESULT = ROOT / "benchmarks" / "results" / "clip_reward.json"
AGENT, FIRST = "agent", "its first mask"
OTHERS = ("random", "centre", "uncertainty", "oracle clicks")
"""What agents are compared with, evaluated by each training; the last one knows the truth."""


@dataclass(frozen=True)
class Arguments:
    """Train and compare."""

    datasets: tuple[str, ...] = ("WBCNucleus", "WBC", "DSB")
    """Second parts of the environments' ids."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each training."""
    folder: Path = ROOT / "runs" / "clip_reward"
    """Where the runs are; what is finished there is not run again."""
    train: bool = True
    """Train the runs that are missing; else leave them out."""


Result = dict[str, Any]
"""Of one dataset. "rows": name -> "iou", "agreement" and "prompts", each (seeds, images), of the last mask, or of the
first. "training": a list of points for each seed, see `report.plot_learning`."""


def measured(arguments: Arguments, dataset: str) -> Result | None:
    """What the finished runs of a dataset found; None if there are none."""
    rows: dict[str, dict[str, list[NDArray]]] = {}
    training, runs = [], []

    def take(name: str, iou: NDArray, agreement: NDArray, prompts: NDArray) -> None:
        row = rows.setdefault(name, {"iou": [], "agreement": [], "prompts": []})
        for column, values in zip(row.values(), (iou, agreement, prompts), strict=True):
            column.append(values)

    for seed in arguments.seeds:
        run = arguments.folder / f"{dataset}-seed{seed}"
        how = [
            "--env", env_id_of(dataset, "SamPromptSemantic"), "--config", "clip", "--data", "real",
            "--seed", str(seed), "--evaluations", "6",
        ]  # fmt: skip
        if not finished(run, how, arguments.train):
            continue
        for name in (AGENT, *(OTHERS if not training else ())):  # the others are the same for all seeds
            file = record_file(run / "evaluations", name)
            record = Record.from_json(json.loads(file.read_text(encoding="utf-8")))
            if name == AGENT:
                take(FIRST, record.iou[:, 1], np.full(len(record.iou), np.nan), np.minimum(record.prompts, 1))
            take(name, record.iou[:, -1], record.returns, record.prompts)
        stored = json.loads((run / "record.json").read_text(encoding="utf-8"))
        training.append(stored["points"])
        runs.append({name: stored[name] for name in ("versions", "git_commit", "hardware", "command", "config")})
    if not runs:
        return None
    named = {name: {column: np.stack(values) for column, values in row.items()} for name, row in rows.items()}
    order = (*OTHERS[:-1], FIRST, AGENT, OTHERS[-1])
    return {"rows": {name: named[name] for name in order}, "training": training, "runs": runs}


def markdown(dataset: str, result: Result) -> str:
    """The tables of one dataset."""
    rows = result["rows"]
    agent = rows[AGENT]
    seeds, images = agent["iou"].shape
    body = [["", "seeds", "IoU", "95 % interval", "agreement", "prompts"], ["---", *["---:"] * 5]]
    for name, row in rows.items():
        i = bootstrap_runs(row["iou"])
        agreement = "" if np.isnan(row["agreement"]).any() else f"{row['agreement'].mean():.3f}"
        body.append([
            name, str(len(row["iou"])), f"{i.mean:.3f}", f"{i.low:.3f} to {i.high:.3f}", agreement,
            f"{row['prompts'].mean():.1f}",
        ])  # fmt: skip
    differences = [["agent -", "IoU", "95 % paired bootstrap interval", "each seed"], ["---", *["---:"] * 3]]
    for name, row in rows.items():
        if name != AGENT:
            difference = agent["iou"] - row["iou"]
            i = bootstrap_runs(difference)
            each = ", ".join(f"{value:+.3f}" for value in difference.mean(axis=1))
            differences.append([name, f"{i.mean:+.3f}", f"{i.low:+.3f} to {i.high:+.3f}", each])
    together = ", ".join(f"{correlation(agent['agreement'][s], agent['iou'][s]):.2f}" for s in range(seeds))
    return (
        f"## {dataset}: {images} held-out images, {seeds} agent{'s' * (seeds > 1)}\n\n"
        "Intervals by bootstrap over images and seeds. agreement: the sum of an episode's rewards, by clip-micro's "
        "judgement of the last mask.\n\n"
        f"{report.markdown(body)}\n{report.markdown(differences)}\n"
        f"Correlation of agreement and IoU over the images, each agent: {together}.\n"
    )


def correlation(one: NDArray, other: NDArray) -> float:
    """Pearson's, 0 where one of them does not vary."""
    varies = one.std() > 0 and other.std() > 0
    return float(np.corrcoef(one, other)[0, 1]) if varies else 0.0


def plot(path: Path, results: dict[str, Result]) -> None:
    """A row per dataset: agreement and IoU along training, and of each held-out image."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(results), 2, figsize=(10, 4 * len(results)), layout="constrained", squeeze=False)
    for (along, images), (dataset, result) in zip(axes, results.items(), strict=True):
        for seed, points in enumerate(result["training"]):
            steps = [p["timesteps"] for p in points]
            along.plot(steps, [p["final_iou"] for p in points], "o-", color=f"C{seed}", label=f"IoU, seed {seed}")
            along.plot(steps, [p["return"] for p in points], "s--", color=f"C{seed}", label=f"agreement, seed {seed}")
        along.set(xlabel="environment steps of PPO", ylabel="mean of the last masks", ylim=(0, 1),
                  title=f"{dataset}: along training, validation split")  # fmt: skip
        along.legend(frameon=False, fontsize=8, ncols=len(result["training"]))
        for name, style in ((AGENT, {"color": "black"}), (OTHERS[-1], {"color": "tab:red"})):
            row = result["rows"][name]
            label = f"{name}s" if name == AGENT else name
            images.scatter(row["agreement"], row["iou"], s=9, alpha=0.5, label=label, **style)
        images.set(xlabel="agreement", ylabel="IoU", xlim=(0, 1), ylim=(0, 1),
                   title=f"{dataset}: last masks, held-out images")  # fmt: skip
        images.legend(frameon=False, fontsize=8)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)


def main() -> None:
    """Train, compare, store, print."""
    arguments = tyro.cli(Arguments, description=__doc__)
    try:
        found = {dataset: measured(arguments, dataset) for dataset in arguments.datasets}
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on from there")
    new = {dataset: result for dataset, result in found.items() if result is not None}
    if not new:
        sys.exit(f"no finished run in {from_root(arguments.folder)}")
    results = {**known(), **new}
    where_from = report.provenance()  # before anything is written, or the commit would count as changed
    text = "\n".join(markdown(dataset, result) for dataset, result in results.items())
    print(text)
    RESULT.with_suffix(".md").write_text(text, encoding="utf-8")
    content = {dataset: {**result, "rows": rounded(result["rows"])} for dataset, result in results.items()}
    RESULT.write_text(json.dumps({**where_from, "datasets": content}, separators=(",", ":")) + "\n", encoding="utf-8")
    plot(RESULT.with_suffix(".png"), results)
    print(f"stored in {from_root(RESULT)}, .md and .png")


def known() -> dict[str, Result]:
    """What is stored, dataset by dataset."""
    stored = json.loads(RESULT.read_text(encoding="utf-8"))["datasets"] if RESULT.is_file() else {}
    for result in stored.values():
        for row in result["rows"].values():
            row |= {column: np.array(values, np.float64) for column, values in row.items()}
    return stored


def rounded(rows: dict[str, dict[str, NDArray]]) -> dict[str, dict[str, list]]:
    """Rows as JSON has them; a number that was not measured is null."""
    return {
        name: {column: [[None if np.isnan(v) else round(float(v), 6) for v in one] for one in values]
               for column, values in row.items()}
        for name, row in rows.items()
    }  # fmt: skip


if __name__ == "__main__":
    main()
