"""Evaluate a saved agent beside the baselines: the same table, pictures and record as after training.

python agents/evaluate.py runs/NAME/model.zip
python agents/evaluate.py runs/NAME/model.zip --split val --objects 50
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

# Before torch is loaded: compute threads that wait by spinning take the cores from whoever else has work. With one
# other busy process on two cores a training step took seven times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@dataclass(frozen=True)
class Arguments:
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
    precision: str = "auto"
    """SAM's decoder: exact (float32), fast (bfloat16), auto (fast where the hardware has bfloat16)."""
    clip: str = "clip-micro"
    """CLIP of targets in words."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of the results; default evaluation-SPLIT beside the model. What it holds already is not done again."""


def main() -> None:
    """Parse the arguments, evaluate, report."""
    arguments = tyro.cli(Arguments, description=__doc__)
    if not arguments.model.is_file():
        sys.exit(f"error: there is no model {arguments.model}; agents/train_ppo.py writes runs/NAME/model.zip")
    try:
        import gymnasium
        from training import evaluation_kwargs, write_report

        from sam_gym.sb3 import ModelPrompter, load_model
    except ImportError as error:
        sys.exit(f"{error}\nThis needs the extra: pip install -e '.[sb3]'")
    from sam_gym.data import DataUnavailableError
    from sam_gym.evaluation import evaluate_entries, make_evaluation_env
    from sam_gym.prompters import baselines
    from sam_gym.sam import CheckpointError
    from sam_gym.semantics import ClipError

    state = arguments.model.parent / "state.json"  # a run says what its environment is besides the id
    config = json.loads(state.read_text(encoding="utf-8"))["config"] if state.is_file() else {}
    kwargs = evaluation_kwargs(config, arguments.model)

    def environment(n: int, render_mode: str | None = None):
        return make_evaluation_env(
            arguments.env, arguments.split, n, render_mode=render_mode, data=arguments.data,
            checkpoint=arguments.checkpoint, device=arguments.device, precision=arguments.precision,
            clip=arguments.clip, **kwargs,
        )  # fmt: skip

    folder = arguments.out or arguments.model.parent / f"evaluation-{arguments.split}"
    try:
        env = environment(min(16, max(1, arguments.objects or 16)))
        agent = ModelPrompter(load_model(arguments.model, env.single_action_space, device=arguments.device))
        entries = {**baselines(env.settings), "agent": agent}
        records = evaluate_entries(entries, env, folder / "evaluations", arguments.objects)
        title = f"{arguments.env}, {records[0].provenance['source']}, {arguments.model}"
        write_report(folder, title, records, agent, environment(1, "rgb_array"), {"points": []})
    except (DataUnavailableError, CheckpointError, ClipError, ValueError, gymnasium.error.Error) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; run the same command again to go on with the entries that are missing")
    print(f"\neverything is in {folder}")


if __name__ == "__main__":
    main()
