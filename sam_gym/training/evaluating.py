"""`evaluate_model`: a saved agent beside the baselines, with the table, pictures and record that training writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from sam_gym.training.arguments import NEEDS_EXTRA, told_in_one_line

if TYPE_CHECKING:
    from sam_gym.envs.base import EngineVectorEnv


@dataclass(frozen=True)
class EvaluationArguments:
    """Evaluate a saved agent beside the baselines on every object of a split."""

    model: Annotated[Path, tyro.conf.Positional]
    """model.zip of a run."""
    env: str = "SamPrompt-ISBI-v0"
    """Environment id."""
    split: str = "test"
    """Split: test, val or train."""
    objects: int | None = None
    """So many objects, evenly spread; default all."""
    data: str = "auto"
    """auto: real images, else a marked stand-in; real: an error instead; synthetic: the stand-in."""
    checkpoint: str = "mobile_sam"
    """SAM weights: a name or a file."""
    device: str = "auto"
    """Where SAM and the policy run."""
    precision: str = "exact"
    """SAM's decoder: exact (float32), as in the table of a training; fast (bfloat16); auto (fast where the hardware has
    bfloat16)."""
    clip: str = "clip-micro"
    """CLIP of targets in words."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of the results; default evaluation-SPLIT beside the model. What it holds already is not done again."""


def evaluate_model(arguments: EvaluationArguments) -> None:
    """Evaluate, print the table, write the rest into the folder of the results.

    Raises:
        ValueError: Something asked for is not there; one line says what.
    """
    if not arguments.model.is_file():
        raise ValueError(f"there is no model {arguments.model}; sam-gym train writes runs/NAME/model.zip")
    try:
        from sam_gym.sb3 import ModelPrompter, load_model
        from sam_gym.training.recipe import evaluation_kwargs
    except ImportError as error:
        raise ValueError(f"{arguments.model} cannot be used, {NEEDS_EXTRA} ({error})") from error
    from sam_gym.evaluation import evaluate_entries, make_evaluation_env
    from sam_gym.prompters import baselines
    from sam_gym.training.report import write_report

    state = arguments.model.parent / "state.json"  # a run says what its environment is besides the id
    config = json.loads(state.read_text(encoding="utf-8"))["config"] if state.is_file() else {}
    kwargs = evaluation_kwargs(config, arguments.model)

    def environment(n: int, render_mode: str | None = None) -> EngineVectorEnv:
        return make_evaluation_env(
            arguments.env, arguments.split, n, render_mode=render_mode, data=arguments.data,
            checkpoint=arguments.checkpoint, device=arguments.device, precision=arguments.precision,
            clip=arguments.clip, **kwargs,
        )  # fmt: skip

    folder = arguments.out or arguments.model.parent / f"evaluation-{arguments.split}"
    with told_in_one_line():
        env = environment(min(16, max(1, arguments.objects or 16)))
        agent = ModelPrompter(load_model(arguments.model, env.single_action_space, device=arguments.device))
        entries = {**baselines(env.settings), "agent": agent}
        records = evaluate_entries(entries, env, folder / "evaluations", arguments.objects)
        title = f"{arguments.env}, {records[0].provenance['source']}, {arguments.model}"
        write_report(folder, title, records, agent, environment(1, "rgb_array"), {"points": []})
    print(f"\neverything is in {folder}")
