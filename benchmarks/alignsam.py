"""AlignSAM's ablation on our data: what the agent, the recalibration module and many steps are each worth.

    python benchmarks/alignsam.py                             train what is missing (resumes), evaluate, print, store
    python benchmarks/alignsam.py --datasets WBC --seeds 0    a part of it
    python benchmarks/alignsam.py --no-train                  take what is trained, leave out the rest
    python benchmarks/alignsam.py --rows "as published"       only this row; the others stay as they are stored
    python benchmarks/alignsam.py --rows                      no row: write the Markdown again from the stored result

Rows, on held-out images, the first five with each branch of the module: the full agent (the recipe
alignsam_gain, fewer steps); without RL (random cells, labelled by the full agent's module); one step (the cells
that the full agent likes best at first, labelled and decoded at once); the module alone (its own mask of the image, no
SAM), the control that the paper lacks. Then without recalibration, read in two ways, since the paper does not say who
labels then: the full agent's clicks, all foreground; and an agent of the same recipe that labels its clicks itself.
Further AlignSAM as published (the recipe alignsam, fewer steps), and, to see what could be had, oracle
clicks. Differences are told for both branches; the paper takes the better one for each of its data sets.
Columns: IoU after T clicks. Every episode has 20 clicks, T is where it is looked at; an agent that stops keeps its
mask. Each training is agents/train_ppo.py under runs/alignsam/.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

# Before torch is loaded, see agents/train_ppo.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import tyro
import yaml
from held_out import env_id_of
from numpy.typing import NDArray
from trainings import ROOT, finished, from_root

from sam_gym._utils.fetching import atomic_path
from sam_gym._utils.naming import unknown
from sam_gym.envs.base import EngineVectorEnv
from sam_gym.evaluation import (
    encode_images,
    evaluate_stored,
    evaluation_provenance,
    kept,
    make_evaluation_env,
    report,
    select_cases,
)
from sam_gym.evaluation.bootstrap import bootstrap_runs
from sam_gym.prompters import Prompter, RandomPrompter, oracle_clicks
from sam_gym.sam.prompts import PromptBatch
from sam_gym.sb3 import ModelPrompter, load_model
from sam_gym.semantics.recalibration import BRANCHES, RecalibrationModule, RecalibrationSettings
from sam_gym.training import read_recipe

RESULT = ROOT / "benchmarks" / "results" / "alignsam.json"
env_id = partial(env_id_of, task="SamPromptSemantic")
STEPS = (1, 5, 10, 15, 20)
SHOWN = 15
"""The T of intervals and differences: AlignSAM's."""

FULL, RANDOM, ONE_STEP, ALONE, FOREGROUND = (  # with each branch
    "full", "without RL", "one step", "the module alone", "all clicks foreground",
)  # fmt: skip
OWN_LABELS, PUBLISHED, ORACLE = "without recalibration", "as published", "oracle clicks"

FEWER: dict[str, Any] = {"n_timesteps": 480, "clone": {"total_timesteps": 640}, "recalibration": {"warm_up": 40}}
"""Of our recipe, so that all trainings together take a couple of hours on two cores."""


def changed(section: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A config section with some entries changed, those of its own sections one by one; None takes one out."""
    result = dict(section)
    for name, value in changes.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = {**section.get(name, {}), **value} if isinstance(value, dict) else value
    return result


RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"{FULL}, {branch}": ("alignsam_gain", changed(FEWER, {"recalibration": {"branch": branch}}))
        for branch in BRANCHES
    },
    OWN_LABELS: ("alignsam_gain", {**FEWER, "recalibration": None}),
    PUBLISHED: ("alignsam", {"n_timesteps": 2250}),
}
"""Row -> the recipe it is trained by, and what is changed in it; None takes an entry out."""

SHOWN_ROWS = (
    *(f"{what}, {branch}" for what in (FULL, RANDOM, ONE_STEP, ALONE, FOREGROUND) for branch in BRANCHES),
    OWN_LABELS, PUBLISHED, ORACLE,
)  # fmt: skip
"""All rows, in the order of the tables."""

COLOURED = (RANDOM, ONE_STEP, ALONE, FOREGROUND, OWN_LABELS, PUBLISHED, ORACLE)
"""Rows by their colour in the plot; both branches have the same, and the full agent's is black."""

QUOTED = """Published (AlignSAM, Huang et al., CVPR 2024, tables 2 to 5), on other data and another SAM, mIoU in %:
blur (CUHK) full 68.47, without RL 59.75, without SRM 66.89, without multi-step 46.92; shadow (SBU) 30.78, 25.62,
21.29, 18.65; glass (MSD) 45.44, 33.41, 31.92, 35.86; PASCAL VOC 62.09, 54.06, 27.73. Implicit against explicit: blur
68.47 / 47.98, shadow 19.40 / 30.78, glass 45.44 / 25.72, VOC 46.03 / 62.09. T = 1, 5, 10, 15, 20: car 42.55, 60.15,
65.04, 66.13, 66.54; cat 74.59, 81.37, 83.86, 85.99, 86.13. No seeds, no intervals, no module alone.
"""


@dataclass(frozen=True)
class Arguments:
    """Train and compare."""

    datasets: tuple[str, ...] = ("VNCMitochondria", "DSB", "WBC")
    """Second parts of the environments' ids."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each training."""
    folder: Path = ROOT / "runs" / "alignsam"
    """Where runs and evaluations are; what is there is not done again."""
    max_images: int | None = None
    """So many held-out images at most of each dataset, evenly spread."""
    scale: float = 1.0
    """Share of the steps of each training, for trials; run them in a folder of their own."""
    rows: tuple[str, ...] = (*RECIPES, ORACLE)
    """What to train and measure, with the controls that belong to it. If not all, it is put into the stored result."""
    checkpoint: str = "mobile_sam"
    """SAM weights: a name or a file."""
    result: Path = RESULT
    """Where the result is stored; table and plot are written beside it."""
    train: bool = True
    """Train what is missing; else leave those rows out."""


def trained(arguments: Arguments, dataset: str, row: str, seed: int) -> Path | None:
    """The folder of a finished run, None if it is missing and shall not be made."""
    run = arguments.folder / f"{dataset}-{row.replace(', ', '-').replace(' ', '_')}-seed{seed}"
    config = run.with_suffix(".yml")
    if arguments.train and not (run / "record.json").is_file():
        write_recipe(config, dataset, row, arguments.scale)
    how = [
        "--env", env_id(dataset), "--config", from_root(config), "--data", "real", "--seed", str(seed),
        "--eval-objects", "12", "--evaluations", "2", "--test-objects", "2", "--checkpoint", arguments.checkpoint,
    ]  # fmt: skip
    return run if finished(run, how, arguments.train) else None


def write_recipe(config: Path, dataset: str, row: str, scale: float) -> None:
    """The config of a row: the recipe it is trained by, with its changes, and so many of the steps."""
    name, changes = RECIPES[row]
    recipe = changed(read_recipe(name, env_id(dataset)), changes)
    counts = {"n_timesteps": recipe, "total_timesteps": recipe["clone"], "warm_up": recipe.get("recalibration", {})}
    for name, part in counts.items():
        if name in part:
            part[name] = round(scale * part[name])
    with atomic_path(config) as path:
        path.write_text(yaml.safe_dump({env_id(dataset): recipe}), encoding="utf-8")


def environment(arguments: Arguments, dataset: str, run: Path | None) -> EngineVectorEnv:
    """Held-out images, as a run's agent is to meet them, with 20 clicks."""
    kwargs: dict[str, Any] = {}
    if run is not None:
        config = json.loads((run / "state.json").read_text(encoding="utf-8"))["config"]
        kwargs = {**config.get("env_kwargs", {}), **config.get("eval_env_kwargs", {})}
        if "recalibration" in config:
            kwargs["labeler"] = from_root(run / "model.safetensors")
    kwargs["max_prompts"] = STEPS[-1]
    return make_evaluation_env(
        env_id(dataset), "test", min(16, arguments.max_images or 16), data="real", precision="auto",
        checkpoint=arguments.checkpoint, **kwargs,
    )  # fmt: skip


Rows = dict[str, NDArray[np.float64]]  # name -> (seeds, images, len(STEPS)) IoU


def rows_of(arguments: Arguments, dataset: str) -> tuple[Rows, dict[str, float]]:
    """All rows of a dataset, and the mean IoU that each branch's full agents had on validation."""
    whole = environment(arguments, dataset, None)
    encode_images(whole.backend, [whole.data])
    rows: dict[str, list[NDArray]] = {}
    validation: dict[str, list[float]] = {}

    def curve(name: str, seed: int, prompter: Prompter, env: EngineVectorEnv) -> None:
        file = arguments.folder / "evaluations" / f"{dataset}-{name}-{seed}.json".replace(" ", "_")
        record, _ = evaluate_stored(prompter, f"{dataset} {name} {seed}", env, file, max_objects=arguments.max_images)
        rows.setdefault(name, []).append(record.iou[:, STEPS])

    for seed in arguments.seeds:
        for name in RECIPES:
            if name not in arguments.rows or not (run := trained(arguments, dataset, name, seed)):
                continue
            env = environment(arguments, dataset, run)
            agent = ModelPrompter(load_model(run / "model.zip", env.single_action_space))
            curve(name, seed, agent, env)
            what, _, branch = name.partition(", ")
            if what == FULL:
                best = json.loads((run / "state.json").read_text(encoding="utf-8"))["best"]
                validation.setdefault(branch, []).append(best["gain"])
                curve(f"{RANDOM}, {branch}", seed, RandomPrompter(seed), env)
                for control, measure in ((ONE_STEP, one_step), (ALONE, module_alone)):
                    other = f"{control}, {branch}"
                    rows.setdefault(other, []).append(stored(arguments, dataset, other, seed, measure, agent, env))
                assert env.labeler is not None, "the full agent has a module"
                env.labeler.use(Everywhere(env.labeler.module.settings))  # the last to use it
                curve(f"{FOREGROUND}, {branch}", seed, agent, env)
    if ORACLE in arguments.rows:
        curve(ORACLE, 0, oracle_clicks, whole)
    means = {branch: float(np.mean(values)) for branch, values in validation.items()}
    return {name: np.stack(values) for name, values in rows.items()}, means


class Everywhere(RecalibrationModule):
    """A module that takes every place for foreground."""

    def __init__(self, settings: RecalibrationSettings) -> None:
        super().__init__(**{**vars(settings), "branch": "implicit"})

    def forward(self, embedding: torch.Tensor, mask: torch.Tensor, similarity: Any = None) -> torch.Tensor:
        """Logits (N, 2g, 2g), all above 0."""
        return torch.ones(len(mask), 2 * mask.shape[1], 2 * mask.shape[2], device=mask.device)


Measure = Callable[[ModelPrompter, EngineVectorEnv], NDArray[np.float64]]


def stored(
    arguments: Arguments,
    dataset: str,
    name: str,
    seed: int,
    measure: Measure,
    agent: ModelPrompter,
    env: EngineVectorEnv,
) -> NDArray[np.float64]:
    """What `measure` finds on each image, (images, len(STEPS)), taken from a file where it is known already."""
    file = arguments.folder / "evaluations" / f"{dataset}-{name}-{seed}.json".replace(" ", "_")
    cases = select_cases(env, arguments.max_images)
    provenance = evaluation_provenance(agent, env, cases)

    def make() -> dict[str, Any]:
        values = []
        for start in range(0, len(cases), env.num_envs):
            some = cases[start : start + env.num_envs]
            env.reset(options={"image": [case.image for case in (*some, *[some[-1]] * (env.num_envs - len(some)))]})
            values.append(measure(agent, env)[: len(some)])
        return {"provenance": provenance, "iou": np.concatenate(values).round(6).tolist()}

    return np.array(kept(file, provenance, make)[0]["iou"])


def one_step(agent: ModelPrompter, env: EngineVectorEnv) -> NDArray[np.float64]:
    """(N, len(STEPS)): the T likeliest cells of the first state, labelled there, and decoded together."""
    policy = agent.model.policy  # type: ignore[union-attr]
    actions: Any = env.actions
    assert env.labeler is not None, "the full agent has a module"
    seen, _ = policy.obs_to_tensor(env.observations())
    with torch.no_grad():
        likely = policy.get_distribution(seen, env.action_masks()).distribution.probs[:, : actions.cells]
    order = likely.argsort(dim=1, descending=True, stable=True).cpu().numpy()
    rows = np.arange(env.num_envs)
    labels = env.labeler.labels(rows, np.tile(actions.centres, (env.num_envs, 1, 1)))
    inside = actions.inside(env.episodes)
    backend = env.backend
    embeddings = [backend.encode([env.data.image(int(i))])[0] for i in env.episodes.image]
    truths = [torch.as_tensor(env.truth(int(row)), device=backend.device) for row in rows]
    iou = []
    for clicks in STEPS:
        chosen = [[cell for cell in order[row] if inside[row, cell]][:clicks] for row in rows]
        views = env.episodes.view
        points = [views[row, :2] + actions.centres[cells] * views[row, 2] - 0.5 for row, cells in enumerate(chosen)]
        batch = PromptBatch.from_lists(points=points, labels=[labels[row, cells] for row, cells in enumerate(chosen)])
        decoded = backend.decode(embeddings, batch, truths=truths)
        assert decoded.statistics is not None, "truths were given"
        iou.append(decoded.statistics.iou[:, 0].cpu().numpy())
    return np.stack(iou, axis=1)


def module_alone(agent: ModelPrompter, env: EngineVectorEnv) -> NDArray[np.float64]:
    """(N, len(STEPS)): the module's foreground before any click, at the image's full size; the same for every T."""
    assert env.labeler is not None, "the full agent has a module"
    rows = np.arange(env.num_envs)
    iou = []
    for row, logits in zip(rows, env.labeler.logits(rows), strict=True):
        truth, view = env.truth(int(row)), env.episodes.view[row]
        y, x = (np.arange(length) + 0.5 for length in truth.shape)
        shares = np.stack(np.broadcast_arrays((x - view[0]) / view[2], ((y - view[1]) / view[2])[:, None]), axis=-1)
        where = torch.as_tensor(2 * shares[None] - 1, dtype=torch.float32, device=logits.device)
        sampled = torch.nn.functional.grid_sample(logits[None, None], where, padding_mode="border", align_corners=False)
        mask = (sampled[0, 0] > 0).cpu().numpy()
        iou.append((mask & truth).sum() / max(1, (mask | truth).sum()))
    return np.repeat(np.array(iou)[:, None], len(STEPS), axis=1)


def markdown(dataset: str, rows: Rows, validation: dict[str, float]) -> str:
    """The tables of one dataset."""
    at = STEPS.index(SHOWN)
    head = [*(f"T = {steps}" for steps in STEPS), f"95 % interval, T = {SHOWN}"]
    intervals = {name: bootstrap_runs(values[..., at]) for name, values in rows.items()}
    body = []
    for name, values in rows.items():
        interval = intervals[name]
        body.append(
            [name, *(f"{v:.3f}" for v in values.mean(axis=(0, 1))), f"{interval.low:.3f} to {interval.high:.3f}"]
        )
    seeds, images, _ = next(iter(rows.values())).shape
    text = (
        f"## {dataset}: {images} held-out images, {seeds} seeds\n\nMean IoU after T clicks; intervals by bootstrap "
        f"over images and seeds.\n\n{report.markdown([['', *head], ['---', *['---:'] * len(head)], *body])}"
    )
    for branch in (name for name in BRANCHES if f"{FULL}, {name}" in rows):
        full = rows[f"{FULL}, {branch}"]
        differences = []
        for name, values in rows.items():
            if name == f"{FULL}, {branch}" or name.endswith(BRANCHES) and not name.endswith(branch):
                continue
            i = bootstrap_runs(full[..., at] - values[..., at])
            verdict = "full is better" if i.low > 0 else "full is worse" if i.high < 0 else "no clear difference"
            apart = intervals[f"{FULL}, {branch}"].low > intervals[name].high
            differences.append(
                [name, f"{i.mean:+.3f}", f"{i.low:+.3f} to {i.high:+.3f}", verdict, "yes" if apart else ""]
            )
        head = [[f"full, {branch} -", "IoU", "95 % interval", "", "above, intervals apart"], ["---", *["---:"] * 4]]
        text += (
            f"\nThe {branch} branch (mean IoU on validation {validation[branch]:.3f}): the full agent less the others "
            f"at T = {SHOWN}, on the same images.\n\n{report.markdown([*head, *differences])}"
        )
    return text


def plot(path: Path, tables: dict[str, Rows]) -> None:
    """Mean IoU against T, a panel per dataset."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(tables), figsize=(5 * len(tables), 4.2), layout="constrained", squeeze=False)
    for axis, (dataset, rows) in zip(axes[0], tables.items(), strict=True):
        for name, values in rows.items():
            what, _, branch = name.partition(", ")
            colour = "black" if what == FULL else f"C{COLOURED.index(what)}"
            style = "--" if branch == BRANCHES[1] else "-"
            axis.plot(STEPS, values.mean(axis=(0, 1)), style, color=colour, marker="o", markersize=3, label=name)
        axis.set(xlabel="clicks", ylabel="mean IoU", title=f"{dataset}, {rows[ORACLE].shape[1]} images", xticks=STEPS)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    lines = {line.get_label(): line for axis in axes[0] for line in axis.get_lines()}  # a dataset may lack a row
    figure.legend(lines.values(), lines, loc="outside right center", frameon=False, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)


def main() -> None:
    """Train, evaluate, store, print."""
    arguments = tyro.cli(Arguments, description=__doc__)
    result, rows_known = arguments.result, {*RECIPES, ORACLE}
    for name in set(arguments.rows) - rows_known:
        sys.exit(unknown("row", name, rows_known))
    some = set(arguments.rows) != rows_known and result.is_file()
    known = json.loads(result.read_text(encoding="utf-8")) if some else {}
    os.chdir(ROOT)  # modules are named from here
    tables = {
        dataset: ({name: np.array(values) for name, values in rows.items()}, known["validation"][dataset])
        for dataset, rows in known.get("iou", {}).items()
    }
    try:
        for dataset in arguments.datasets if arguments.rows else ():
            rows, validation = tables.get(dataset, ({}, {}))
            new, means = rows_of(arguments, dataset)
            rows = {name: {**rows, **new}[name] for name in SHOWN_ROWS if name in rows or name in new}
            tables[dataset] = (rows, {**validation, **means})
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on from there")
    if arguments.rows:
        where_from = report.provenance()  # before anything is written, or the commit would count as changed
        iou = {name: {row: one.round(6).tolist() for row, one in rows.items()} for name, (rows, _) in tables.items()}
        recipes = {row: {"config": name, "changes": changes} for row, (name, changes) in RECIPES.items()}
        how = {"steps": STEPS, "recipes": recipes, "scale": arguments.scale, "checkpoint": arguments.checkpoint}
        later = {**known.get("later", {}), ", ".join(arguments.rows): where_from} if known else {}
        validation = {name: means for name, (_, means) in tables.items()}
        known = {**where_from, **how, **known, "later": later, "validation": validation, "iou": iou}
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_text(json.dumps(known, separators=(",", ":")) + "\n", encoding="utf-8")
    text = "\n".join([*(markdown(dataset, *table) for dataset, table in tables.items()), QUOTED])
    print(text)
    result.with_suffix(".md").write_text(text, encoding="utf-8")
    plot(result.with_suffix(".png"), {dataset: rows for dataset, (rows, _) in tables.items()})
    print(f"\nstored in {from_root(result)}, .md and .png")


if __name__ == "__main__":
    main()
