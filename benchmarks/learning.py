"""Agents that sketch the object first, several seeds each, on whole held-out splits, with the full and exact decoder.

    python benchmarks/learning.py                        train what is missing (resumes), evaluate, write the tables
    python benchmarks/learning.py --datasets ISBI        one dataset; the others keep their stored rows
    python benchmarks/learning.py --no-train             take the runs that are finished, train nothing

Each training is `agents/train_ppo.py --config sketch` in a folder of its own under runs/learning/, some fifteen minutes
on one core. Its clone and its agent are evaluated twice: with the last mask, and with the one that their judge thinks
best. So it is seen what each of them gains. Intervals are 95 % bootstrap intervals over objects and seeds. Stored in
benchmarks/results/learning.{json,md}.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before torch is loaded, see agents/train_ppo.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import tyro
from held_out import RETURNED, env_id_of, interval, scripted, summary, trained
from numpy.typing import NDArray
from scipy.stats import spearmanr
from trainings import ROOT, finished

from sam_gym._utils.fetching import write_json
from sam_gym.evaluation import make_evaluation_env, report, select_cases
from sam_gym.evaluation.comparison import paired_difference
from sam_gym.sb3 import ModelPrompter, load_model

RESULT = ROOT / "benchmarks" / "results" / "learning.json"
DATASETS = ("ISBI", "VNCMitochondria", "DSB")
ENTRIES = (("clone", "clone.zip"), ("agent", "model.zip"))
JUDGED = 200
"""So many held-out objects, evenly spread, on whose masks the judge is judged."""


@dataclass(frozen=True)
class Arguments:
    """Train agents that sketch, and compare them with their clones, their boxes and the oracle."""

    datasets: tuple[str, ...] = DATASETS
    """Second part of the environments' ids."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of trainings."""
    folder: Path = ROOT / "runs" / "learning"
    """Where the runs are; what is finished there is not run again."""
    train: bool = True
    """Train what is missing; else leave it out."""


def judged(env_id: str, run: Path) -> dict[str, float]:
    """How well judge and SAM predict the IoU of the masks that the agent makes on the way, its last one excepted."""
    env = make_evaluation_env(env_id, "test", data="real", precision="exact", attention="foveated")
    agent = ModelPrompter(load_model(run / "model.zip", env.single_action_space, device="cpu"))
    judge, columns = agent.judge, []
    assert judge is not None, "the recipe trains one"
    cases = select_cases(env, JUDGED)
    for start in range(0, len(cases), env.num_envs):
        some = cases[start : start + env.num_envs]
        observations = env.begin_rows({row: case.pose() for row, case in enumerate(some)})
        alive = np.arange(len(some))
        while len(alive):
            both = judge(observations), observations["state"][:, 1]
            columns.append(np.stack([env.quality.iou, *both])[:, alive])
            actions = agent(observations, env)
            observations, _ = env.step_rows(alive, actions[alive])
            alive = alive[~env.episodes.terminated[alive]]
    truth, judges, sam = np.concatenate(columns, axis=1)
    return {
        "masks": len(truth),
        **{
            f"{name} {measure}": float(value)
            for name, predicted in (("judge", judges), ("SAM", sam))
            for measure, value in (
                ("error", np.abs(predicted - truth).mean()),
                ("correlation", spearmanr(predicted, truth).statistic),
            )
        },
    }


def measured(dataset: str, arguments: Arguments) -> dict[str, Any] | None:
    """What one dataset's table rows are made of; None if nothing is trained."""
    env_id = env_id_of(dataset)
    scores: dict[str, list[NDArray[np.float64]]] = {}
    judges, seeds = [], []
    for seed in arguments.seeds:
        run = arguments.folder / f"{dataset}-seed{seed}"
        how = ["--env", env_id, "--config", "sketch", "--data", "real", "--precision", "exact", "--seed", str(seed),
               "--eval-objects", "200", "--evaluations", "4", "--test-objects", "2"]  # fmt: skip
        if not finished(run, how, arguments.train):
            continue
        seeds.append(seed)
        for name, file in ENTRIES:
            curves = trained(env_id, run / file, run / f"test-{name}.json", f"{name}, seed {seed}")
            for returns, curve in curves.items():
                scores.setdefault(f"{name}, {returns}", []).append(curve)
        judges.append(judged(env_id, run))
    if not seeds:
        return None
    base = scripted(env_id, arguments.folder / dataset)
    box, oracle = (base[name][:, -1] for name in ("box only", "oracle clicks"))
    rows = {name: summary(curves, box, oracle) for name, curves in scores.items()}
    for returns in RETURNED:
        agent, clone = (np.stack([c[:, -1] for c in scores[f"{name}, {returns}"]]) for name in ("agent", "clone"))
        difference = paired_difference(agent, clone)
        rows[f"agent, {returns}"]["ppo"] = [difference.mean, difference.low, difference.high]
    means = {name: float(np.mean([one[name] for one in judges])) for name in judges[0]}
    return {"env": env_id, "seeds": seeds, "objects": len(box), "box": float(box.mean()),
            "oracle": float(oracle.mean()), "rows": rows, "judge": means, **report.provenance()}  # fmt: skip


def tables(stored: dict[str, Any]) -> str:
    """What is stored, as Markdown."""
    head = ["dataset", "objects", "seeds", "entry", "returns", "box only", "IoU", "gain (95 %)", "oracle", "gap closed",
            "PPO less its clone (95 %)", "worse than the box"]  # fmt: skip
    rows = [head, ["---"] * len(head)]
    for dataset, found in stored.items():
        for name, row in found["rows"].items():
            entry, returns = name.split(", ")
            rows.append(
                [dataset, str(found["objects"]), str(len(found["seeds"])), entry,
                 RETURNED[returns], f"{found['box']:.3f}",
                 f"{row['final']:.3f}", interval(row["gain"]), f"{found['oracle']:.3f}",
                 f"{100 * row['closed']:.0f} %", interval(row["ppo"]) if "ppo" in row else "",
                 f"{100 * row['failures']:.0f} %"]
            )  # fmt: skip
    judges = [["dataset", "masks a seed", "error of the judge", "of SAM", "rank correlation of the judge", "of SAM"]]
    judges.append(["---"] * len(judges[0]))
    for dataset, found in stored.items():
        one = found["judge"]
        names = ("judge error", "SAM error", "judge correlation", "SAM correlation")
        judges.append([dataset, f"{one['masks']:.0f}", *(f"{one[name]:.3f}" for name in names)])
    return f"{report.markdown(rows)}\n{report.markdown(judges)}"


def main() -> None:
    """Train, evaluate, store."""
    arguments = tyro.cli(Arguments, description=__doc__)
    stored = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    for dataset in arguments.datasets:
        if (found := measured(dataset, arguments)) is not None:
            stored[dataset] = found
            write_json(RESULT, stored)
            RESULT.with_suffix(".md").write_text(tables(stored), encoding="utf-8")
    print(tables(stored))


if __name__ == "__main__":
    main()
