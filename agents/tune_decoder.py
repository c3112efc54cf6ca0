"""Tune SAM's mask decoder on a dataset, for boxes of the wrong size; the result is a checkpoint like any other.

    python agents/tune_decoder.py                                     prompt tuning on the ISBI sections
    python agents/tune_decoder.py --method decoder                    the mask decoder alone
    python agents/tune_decoder.py --dataset vnc-mitochondria
    gymnasium.make("SamBoxRefine-ISBI-v0", checkpoint="runs/tuned/isbi2012-token.safetensors")

It says how the tuned decoder does on the validation split, beside the decoder that it started from. The same command
goes on where it was interrupted. What is trained and how is in sam_gym/sam/tuning.py.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

# Before torch is loaded, see train_ppo.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ERRORS = (0.0, 0.2, 0.4)


@dataclass(frozen=True)
class Arguments:
    """Tune SAM's mask decoder on one dataset."""

    dataset: str = "isbi2012"
    """Name of the dataset; its training split is used."""
    method: Literal["decoder", "embeddings", "token"] = "token"
    """decoder: mask decoder alone; embeddings: and SAM's own prompt embeddings; token: and an added token (P)."""
    checkpoint: str = "mobile_sam"
    """SAM weights to start from: a name or a file."""
    steps: int = 2000
    """Steps of AdamW."""
    batch_size: int = 4
    """Objects in a step."""
    learning_rate: float = 2e-4
    """At its highest."""
    size_error: Literal["isotropic", "sides"] = "isotropic"
    """Convention of the wrong size of training boxes."""
    seed: int = 0
    """Of the order of objects, their boxes and the token's first weights."""
    data: str = "auto"
    """auto: real images, else a marked stand-in; real: an error instead; synthetic: the stand-in."""
    device: str = "auto"
    """Where it runs: auto, cpu, cuda."""
    precision: str = "auto"
    """exact: float32; fast: bfloat16 where that is safe; auto: fast where the hardware has it."""
    eval_objects: int = 200
    """Validation objects for the figures at the end, evenly spread over the split."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The file to write; default runs/tuned/DATASET-METHOD.safetensors."""


def main() -> None:
    """Parse the arguments, tune, save, report."""
    arguments = tyro.cli(Arguments, description=__doc__)
    try:
        from sam_gym.data import DataUnavailableError
        from sam_gym.sam import CheckpointError
    except ImportError as error:
        sys.exit(f"{error}\nsam_gym is needed: pip install -e .")
    out = arguments.out or Path("runs/tuned") / f"{arguments.dataset}-{arguments.method}.safetensors"
    if out.exists():
        sys.exit(f"error: {out} is there already: remove it, or name another file with --out")
    try:
        tune(arguments, out)
    except (DataUnavailableError, CheckpointError, ValueError) as error:
        sys.exit(f"error: {error}")


def tune(arguments: Arguments, out: Path) -> None:
    """Run the steps that are left, save the decoder, print what it gained."""
    from sam_gym._utils.progress import run_with_bar
    from sam_gym.data import load_data
    from sam_gym.evaluation import encode_images
    from sam_gym.sam.backend import get_backend
    from sam_gym.sam.tuning import Tuner, TuningSettings

    settings = TuningSettings(
        method=arguments.method, steps=arguments.steps, batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate, size_error=arguments.size_error, seed=arguments.seed,
    )  # fmt: skip
    data = load_data(arguments.dataset, "train", arguments.data)
    backend = get_backend(arguments.checkpoint, arguments.device, arguments.precision)
    state = out.with_suffix(".state")
    state.parent.mkdir(parents=True, exist_ok=True)
    tuner = Tuner(arguments.checkpoint, data, settings, backend, state)
    encode_images(backend, [data, load_data(arguments.dataset, "val", arguments.data)])
    try:
        run_with_bar(tuner, f"tuning {settings.method}")
    except KeyboardInterrupt:
        sys.exit(f"\nstopped after {tuner.steps_done} steps; the same command goes on from there")
    tuner.save(out)
    state.unlink(missing_ok=True)
    report(arguments, out)
    print(f'saved in {out}; use it with gymnasium.make(..., checkpoint="{out}")')


def report(arguments: Arguments, out: Path) -> None:
    """Mean IoU on the validation split by size error, before and after."""
    import sam_gym  # noqa: F401  registers the ids
    from sam_gym.evaluation import evaluate, make_evaluation_env
    from sam_gym.prompters import box_only
    from sam_gym.registration import OBJECTS

    short = next(short for short, name in OBJECTS.items() if name == arguments.dataset)
    print(f"mean IoU on the validation split of {arguments.dataset}, size error {arguments.size_error}:")
    for name, checkpoint in (("before", arguments.checkpoint), ("after", str(out))):
        values = []
        for error in ERRORS:
            env = make_evaluation_env(
                f"SamBoxRefine-{short}-v0", "val", checkpoint=checkpoint, box_error=error,
                size_error=arguments.size_error, data=arguments.data, device=arguments.device,
                precision=arguments.precision,
            )  # fmt: skip
            record = evaluate(box_only, env, name=name, max_objects=arguments.eval_objects, progress=False)
            values.append(f"{record.curve[0]:.3f} at {error:.0%}")
        print(f"{name:>7}: {', '.join(values)}")


if __name__ == "__main__":
    main()
