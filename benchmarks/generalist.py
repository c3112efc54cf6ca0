"""One agent for all data sets: how it does on each, and how one does on a data set that it never saw.

    python benchmarks/generalist.py                      train what is missing (resumes), evaluate, write the tables
    python benchmarks/generalist.py --agents all         only the agent of all data sets
    python benchmarks/generalist.py --no-train           take the runs that are finished, train nothing

"all" is trained on SamPrompt-Mixed-v0. Each of the others is trained on the same without one laboratory's images, in
half the steps. A training takes an hour or less on one core. Held-out splits are evaluated whole, with the full and
exact decoder. Stored in benchmarks/results/generalist.{json,md}.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before torch is loaded, see agents/train_ppo.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import tyro
import yaml
from held_out import RETURNED, env_id_of, interval, scripted, summary, trained
from trainings import ROOT, finished

from sam_gym._utils.fetching import write_json
from sam_gym.data.mixture import BETWEEN
from sam_gym.evaluation import report
from sam_gym.registration import MIXED
from sam_gym.training.recipe import read_recipe

RESULT = ROOT / "benchmarks" / "results" / "generalist.json"
ENV = "SamPrompt-Mixed-v0"
ALL = "all"
LEFT_OUT = {
    ALL: (), "without ISBI": ("isbi",), "without VNC": ("vnc",), "without WBC": ("wbc",), "without DSB": ("dsb",),
}  # fmt: skip
"""Agent -> how the names of those data sets begin that it is not trained on."""

UNSEEN = {
    "ISBI": "without ISBI",
    "VNCCells": "without VNC",
    "VNCMitochondria": "without VNC",
    "WBC": "without WBC",
    "WBCNucleus": "without WBC",
    "DSB": "without DSB",
}
"""Data set -> the agent that never saw it."""


@dataclass(frozen=True)
class Arguments:
    """Train agents of many data sets, and see how far they get on those that they know and those that they do not."""

    agents: tuple[str, ...] = tuple(LEFT_OUT)
    """Which of "all", "without ISBI", "without VNC", "without WBC", "without DSB"."""
    datasets: tuple[str, ...] = tuple(UNSEEN)
    """Those that agents are measured on; the others keep their stored rows."""
    seeds: tuple[int, ...] = (0,)
    """Of trainings."""
    folder: Path = ROOT / "runs" / "generalist"
    """Where the runs are; what is finished there is not run again."""
    train: bool = True
    """Train what is missing; else leave it out."""


def recipe(agent: str, folder: Path) -> str:
    """What an agent is trained by: the packaged recipe, or a file with half the steps on fewer data sets."""
    if agent == ALL:
        return "sketch"
    section = read_recipe("sketch", ENV)
    names = [name for name in MIXED["Mixed"].split(BETWEEN) if not name.startswith(LEFT_OUT[agent])]
    for part in (section["sketch"], section["judge"]):
        part.update({name: part[name] // 2 for name in ("total_timesteps", "gradient_steps")})
    section["clone"]["total_timesteps"] //= 2
    section["n_timesteps"] //= 2
    for kwargs in ("env_kwargs", "eval_env_kwargs"):
        section[kwargs]["dataset"] = BETWEEN.join(names)
    file = folder / f"{agent.replace(' ', '-')}.yml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump({ENV: section}), encoding="utf-8")
    return str(file)


def measured(agent: str, seed: int, arguments: Arguments) -> dict[str, dict[str, Any]]:
    """Data set -> curves of one training of an agent, by what is returned; empty if it is not trained."""
    run = arguments.folder / f"{agent.replace(' ', '-')}-seed{seed}"
    how = ["--env", ENV, "--config", recipe(agent, arguments.folder), "--data", "real", "--precision", "exact",
           "--seed", str(seed), "--eval-objects", "210", "--evaluations", "4", "--test-objects", "7"]  # fmt: skip
    if not finished(run, how, arguments.train):
        return {}
    there = [dataset for dataset in arguments.datasets if agent in (ALL, UNSEEN[dataset])]
    return {
        dataset: trained(env_id_of(dataset), run / "model.zip", run / f"test-{dataset}.json", f"{agent}, seed {seed}")
        for dataset in there
    }


def tables(stored: dict[str, Any]) -> str:
    """What is stored, as Markdown."""
    head = ["dataset", "objects", "agent", "seen in training", "seeds", "returns", "box only", "IoU", "gain (95 %)",
            "oracle", "gap closed", "worse than the box"]  # fmt: skip
    rows = [head, ["---"] * len(head)]
    for dataset in UNSEEN:
        for agent, found in stored.get(dataset, {}).items():
            for returns, row in found["rows"].items():
                rows.append(
                    [dataset, str(found["objects"]), agent, "no" if agent == UNSEEN[dataset] else "yes",
                     str(found["seeds"]), RETURNED[returns], f"{found['box']:.3f}", f"{row['final']:.3f}",
                     interval(row["gain"]), f"{found['oracle']:.3f}", f"{100 * row['closed']:.0f} %",
                     f"{100 * row['failures']:.0f} %"]
                )  # fmt: skip
    return report.markdown(rows)


def main() -> None:
    """Train, evaluate, store."""
    arguments = tyro.cli(Arguments, description=__doc__)
    stored = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    for agent in arguments.agents:
        runs = [measured(agent, seed, arguments) for seed in arguments.seeds]
        runs = [run for run in runs if run]
        for dataset in runs[0] if runs else ():
            base = scripted(env_id_of(dataset), arguments.folder / dataset)
            box, oracle = (base[name][:, -1] for name in ("box only", "oracle clicks"))
            rows = {returns: summary([run[dataset][returns] for run in runs], box, oracle) for returns in RETURNED}
            stored.setdefault(dataset, {})[agent] = {
                "seeds": len(runs), "objects": len(box), "box": float(box.mean()), "oracle": float(oracle.mean()),
                "rows": rows, **report.provenance(),
            }  # fmt: skip
        write_json(RESULT, stored)
        RESULT.with_suffix(".md").write_text(tables(stored), encoding="utf-8")
    print(tables(stored))


if __name__ == "__main__":
    main()
