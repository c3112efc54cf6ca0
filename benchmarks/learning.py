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
from numpy.typing import NDArray
from scipy.stats import spearmanr
from trainings import ROOT, finished

from sam_gym._utils.fetching import write_json
from sam_gym.envs.keeping import BEST_PREDICTED, LAST
from sam_gym.evaluation import encode_images, evaluate, evaluate_stored, make_evaluation_env, report, select_cases
from sam_gym.evaluation.comparison import paired_difference
from sam_gym.prompters import box_only, oracle_clicks
from sam_gym.registration import TASKS
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


def scripted(env_id: str, folder: Path) -> dict[str, NDArray[np.float64]]:
    """Name -> IoU after each prompt, (objects, T + 1), of the box alone and of the oracle, on the whole test split."""
    env = make_evaluation_env(env_id, "test", data="real", precision="exact")
    encode_images(env.backend, [env.data])
    found = {}
    for name, prompter in (("box only", box_only), ("oracle clicks", oracle_clicks)):
        record, _ = evaluate_stored(prompter, name, env, folder / f"{name.replace(' ', '_')}.json")
        found[name] = record.iou
    return found


def trained(env_id: str, run: Path, seed: int) -> dict[str, NDArray[np.float64]]:
    """Name and what is returned -> IoU after each prompt, of a run's clone and agent, on the whole test split.

    Both columns come of one evaluation: which masks are made does not depend on which one is returned.
    """
    env = make_evaluation_env(env_id, "test", data="real", precision="exact", returns=BEST_PREDICTED)
    encode_images(env.backend, [env.data])
    best, episodes = env.engine.best, env.episodes
    assert best is not None, "it returns them"
    found = {}
    for name, file in ENTRIES:
        made: dict[tuple[int, int], list[float]] = {}
        plain = best.note

        def note(engine: Any, rows: Any, decoded: Any, *, first: bool, made: Any = made, plain: Any = plain) -> None:
            for row, iou in zip(rows, decoded.iou, strict=True):
                key = int(episodes.image[row]), int(episodes.object_id[row])
                if first:
                    made[key] = []
                made[key].append(float(iou))
            plain(engine, rows, decoded, first=first)

        agent = ModelPrompter(load_model(run / file, env.single_action_space, device="cpu"))
        stored = run / f"test-{name}.json"
        if stored.is_file():
            content = json.loads(stored.read_text(encoding="utf-8"))
        else:
            best.note = note  # type: ignore[method-assign]
            record = evaluate(agent, env, name=f"{env_id}, {name}, seed {seed}")
            best.note = plain  # type: ignore[method-assign]
            steps = record.iou.shape[1]
            last = [made[case.image, case.object_id] for case in record.cases]
            content = {
                BEST_PREDICTED: record.iou.tolist(),
                LAST: [curve + curve[-1:] * (steps - len(curve)) for curve in last],
                "identity": agent.identity,
            }
            write_json(stored, content)
        if content["identity"] != agent.identity:
            raise ValueError(f"{stored} is of other weights than {run / file}: delete it")
        for returns in (LAST, BEST_PREDICTED):
            found[f"{name}, {returns}"] = np.array(content[returns])
    return found


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
    env_id = next(task.env_id(dataset) for task in TASKS if task.name == "SamPrompt")
    scores: dict[str, list[NDArray[np.float64]]] = {}
    judges, seeds = [], []
    for seed in arguments.seeds:
        run = arguments.folder / f"{dataset}-seed{seed}"
        how = ["--env", env_id, "--config", "sketch", "--data", "real", "--precision", "exact", "--seed", str(seed),
               "--eval-objects", "200", "--evaluations", "4", "--test-objects", "2"]  # fmt: skip
        if not finished(run, how, arguments.train):
            continue
        seeds.append(seed)
        for name, curve in trained(env_id, run, seed).items():
            scores.setdefault(name, []).append(curve)
        judges.append(judged(env_id, run))
    if not seeds:
        return None
    base = scripted(env_id, arguments.folder / dataset)
    box, oracle = (base[name][:, -1] for name in ("box only", "oracle clicks"))
    finals = {name: np.stack([curve[:, -1] for curve in found]) for name, found in scores.items()}
    rows = {}
    for name, final in finals.items():
        gain = paired_difference(final, box)
        rows[name] = {
            "final": float(final.mean()),
            "gain": [gain.mean, gain.low, gain.high],
            "closed": float((final.mean() - box.mean()) / (oracle.mean() - box.mean())),
            "failures": float((final < box - 1e-9).mean()),
            "curve": np.mean(scores[name], axis=(0, 1)).tolist(),
        }
    for returns in (LAST, BEST_PREDICTED):
        difference = paired_difference(finals[f"agent, {returns}"], finals[f"clone, {returns}"])
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
                 {LAST: "last mask", BEST_PREDICTED: "best predicted"}[returns], f"{found['box']:.3f}",
                 f"{row['final']:.3f}", _interval(row["gain"]), f"{found['oracle']:.3f}",
                 f"{100 * row['closed']:.0f} %", _interval(row["ppo"]) if "ppo" in row else "",
                 f"{100 * row['failures']:.0f} %"]
            )  # fmt: skip
    judges = [["dataset", "masks a seed", "error of the judge", "of SAM", "rank correlation of the judge", "of SAM"]]
    judges.append(["---"] * len(judges[0]))
    for dataset, found in stored.items():
        one = found["judge"]
        names = ("judge error", "SAM error", "judge correlation", "SAM correlation")
        judges.append([dataset, f"{one['masks']:.0f}", *(f"{one[name]:.3f}" for name in names)])
    return f"{report.markdown(rows)}\n{report.markdown(judges)}"


def _interval(three: list[float]) -> str:
    return f"{three[0]:+.3f} ({three[1]:+.3f} to {three[2]:+.3f})"


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
