"""Does DDPO draw cells that show what was asked for, and does a judge that gave no reward agree?

    python benchmarks/denoise.py --agent runs/ddpo-Smears/agent.safetensors     all arms of one data set
    python benchmarks/denoise.py --samples 16 --arms base guidance              some of them, to see it work
    python benchmarks/denoise.py --speed                                        the environment against a plain loop

Arms: the base model, classifier-free guidance, the best of 4 and of 16 samples by the reward's classifier, and DDPO's
model. All begin from the same noise. For each: accuracy of the class asked for by the judge and by the reward's
classifier, whose difference is over-optimisation; Frechet distance and diversity in the judge's features; distance to
the nearest training picture; network calls a sample. Results and sheets of samples go to benchmarks/results/denoise/.

It does not yet ask whether the samples help to train a classifier or a segmenter.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import gymnasium
import numpy as np
import torch
import tyro
from torch import Tensor

import sam_gym
from sam_gym._utils.fetching import write_json
from sam_gym._utils.progress import progress_bar
from sam_gym.evaluation.report import markdown
from sam_gym.generative.baselines import best_of
from sam_gym.generative.classifier import JUDGE, REWARD, Classifier
from sam_gym.generative.files import NAMES, weights_file
from sam_gym.generative.judging import judge_samples
from sam_gym.generative.model import Denoiser, sample, to_pixels
from sam_gym.generative.schedule import Schedule
from sam_gym.generative.sheets import EACH, tiled, write_sheet
from sam_gym.generative.sources import load_pictures

GUIDANCE = 3.0
RESULTS = Path(__file__).parent / "results" / "denoise"
Arm = Literal["base", "guidance", "best of 4", "best of 16", "DDPO"]
ARMS: tuple[Arm, ...] = ("base", "guidance", "best of 4", "best of 16", "DDPO")
CALLS = {"base": 1, "guidance": 2, "best of 4": 4, "best of 16": 16, "DDPO": 1}
"""Network calls a sample and step."""


@dataclass(frozen=True)
class Arguments:
    """Judge samples of a base model, of what it is compared with, and of DDPO."""

    dataset: Literal["Smears", "DSB", "WBC", "Synthetic"] = "Smears"
    """The set of pictures, as in the environment's id."""
    agent: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """agent.safetensors of agents/train_ddpo.py; without it the arm DDPO is left out."""
    arms: tuple[Arm, ...] = ARMS
    """Which arms."""
    samples: int = 100
    """Samples of each class and arm."""
    seed: int = 0
    """Of the noise that all arms begin from."""
    threads: int = 2
    """Threads of torch."""
    out: Path = RESULTS
    """Folder of results and sheets."""
    speed: bool = False
    """Measure the environment's speed instead."""


def main() -> None:
    """Parse the arguments, measure, print."""
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(arguments.threads)
    try:
        speed(arguments) if arguments.speed else study(arguments)
    except ValueError as error:
        sys.exit(f"error: {error}")


def study(arguments: Arguments) -> None:
    """All arms of one data set."""
    name = next(key for key, short in NAMES.items() if short == arguments.dataset)
    arms = [arm for arm in arguments.arms if arm != "DDPO" or arguments.agent]
    train, test = load_pictures(name, "train"), load_pictures(name, "test")
    classifiers = {role: Classifier.load(weights_file(name, role), train.classes) for role in (REWARD, JUDGE)}
    labels = torch.arange(len(train.classes)).repeat_interleave(arguments.samples)
    rows, stored = [], {}
    with progress_bar("arms", len(arms), "arm") as bar:
        for arm in arms:
            samples = drawn(arm, arguments, name, classifiers[REWARD], labels)
            judged = judge_samples(samples, labels, classifiers[JUDGE], train, test)
            pleased = (classifiers[REWARD](samples).argmax(1) == labels).float().mean().item()
            stored[arm] = {**asdict(judged), "reward_accuracy": pleased, "calls": CALLS[arm]}
            shown = to_pixels(samples.unflatten(0, (len(train.classes), -1))[:, :EACH].flatten(0, 1))
            path = arguments.out / f"{arguments.dataset}-{arm.replace(' ', '-')}.png"
            write_sheet(path, tiled(shown, min(EACH, arguments.samples)))
            figures = (judged.accuracy, pleased, judged.frechet, judged.diversity, judged.nearest)
            rows.append([arm, *(f"{value:.3f}" for value in figures), str(CALLS[arm])])
            bar.update()
    head = ["arm", "accuracy, judge", "accuracy, reward's", "Frechet", "diversity", "nearest", "calls"]
    print(markdown([head, ["---"] * len(head), *rows]))
    facts = {"dataset": name, "samples": arguments.samples, "seed": arguments.seed, "version": sam_gym.__version__}
    write_json(arguments.out / f"{arguments.dataset}.json", {**facts, "arms": stored})


def drawn(arm: Arm, arguments: Arguments, dataset: str, reward: Classifier, labels: Tensor) -> Tensor:
    """Samples of one arm, 64 at a time."""
    path = arguments.agent if arm == "DDPO" else weights_file(dataset, "base")
    assert path is not None, "the arm is left out without an agent"
    model, schedule = Denoiser.load(path), Schedule()
    generator, parts = torch.Generator().manual_seed(arguments.seed), []
    for part in labels.split(64):
        if arm.startswith("best of"):
            parts.append(best_of(CALLS[arm], model, reward, schedule, part, generator))
        else:
            parts.append(sample(model, schedule, part, generator, GUIDANCE if arm == "guidance" else 1.0))
    return torch.cat(parts)


def speed(arguments: Arguments) -> None:
    """Seconds of 20 steps of 64 samples: through the environment, and in a plain loop with diffusers' scheduler."""
    from diffusers import DDIMScheduler

    env = gymnasium.make_vec(f"Denoise-{arguments.dataset}-v0", 64, action_mode="noise", autoreset_mode="Disabled")
    model: Denoiser = env.unwrapped.engine.model  # type: ignore[attr-defined]
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing"
    )
    scheduler.set_timesteps(20)
    rng, labels = np.random.default_rng(0), torch.arange(64) % len(model.classes)

    def through_environment() -> None:
        env.reset(seed=0)
        for _ in range(20):
            env.step(rng.standard_normal((64, 3, 32, 32), np.float32))

    @torch.no_grad()
    def plain() -> None:
        x = torch.randn(64, 3, 32, 32)
        for t in scheduler.timesteps:
            velocity = model(x, t.expand(64), labels)
            x = scheduler.step(velocity, t, x, eta=1.0, use_clipped_model_output=True).prev_sample

    best = {"environment": np.inf, "plain loop": np.inf}
    ways: dict[str, Callable[[], None]] = {"environment": through_environment, "plain loop": plain}
    with progress_bar("speed", 5, "round") as bar:
        for _ in range(5):  # in turn, since other work on the machine comes and goes; the best is what counts
            for name, way in ways.items():
                start = time.process_time()
                way()
                best[name] = min(best[name], time.process_time() - start)
            bar.update()
    for name, seconds in best.items():
        print(f"{name}: {20 / seconds:.2f} steps of 64 samples a second of processor time, best of 5")
    print(f"environment / plain loop: {best['plain loop'] / best['environment']:.3f}")


if __name__ == "__main__":
    main()
