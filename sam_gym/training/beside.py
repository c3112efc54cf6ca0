"""What a run learns beside clicking: a sketch of the object beforehand, and a judge of masks afterwards.

Clone and agent have the same sketcher and the same judge, so that what those gain is never taken for what PPO has
learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from sam_gym._utils.fetching import atomic_path
from sam_gym._utils.progress import progress_bar
from sam_gym.prompters import Prompter
from sam_gym.sb3.judging import JudgeSettings, train_judge
from sam_gym.sb3.sketching import Sketcher, SketchSettings, train_sketcher
from sam_gym.training.report import KEPT

if TYPE_CHECKING:
    from sam_gym.training.run import Training


def train_shared_sketcher(run: Training) -> None:
    """Train the sketcher of a run's policy, or take the one that the run has trained already."""
    policy: Any = run.model.policy
    file = run.folder / "sketcher.pt"
    if not file.is_file():
        settings = SketchSettings(**run.state["config"]["sketch"])
        sketcher = Sketcher(run.train.single_observation_space).to(policy.device)  # type: ignore[arg-type]
        with _told(run, "sketch", settings) as update:
            iou = train_sketcher(sketcher, run.train, settings, run.seed, update)
        tqdm.write(f"sketch: IoU with the object {iou:.3f} on training objects")
        with atomic_path(file) as path:
            torch.save(sketcher.state_dict(), path)
    policy.use_sketcher(torch.load(file, map_location=policy.device, weights_only=True))


def train_shared_judge(run: Training) -> None:
    """Train it on the masks of the best model, and give it to the clone as well."""
    settings = JudgeSettings(**run.state["config"]["judge"])
    policy: Any = run.load(run.folder / "best.zip").policy
    with _told(run, "judge", settings) as update:
        error = train_judge(policy, run.train, settings, run.seed, update)
    tqdm.write(f"judge: the IoU that it predicts of training masks is off by {error:.3f}")
    learned = {name: weight for name, weight in policy.state_dict().items() if name.startswith("judge_")}
    for name in ("clone.zip", "best.zip"):
        if (run.folder / name).is_file():
            run.model = run.load(run.folder / name)
            run.model.policy.load_state_dict(learned, strict=False)
            run.save_model(name)


@contextmanager
def _told(run: Training, name: str, settings: SketchSettings | JudgeSettings) -> Iterator[Callable[[int, str], None]]:
    """A bar over the steps of both kinds, and what moves it on."""
    n = run.train.num_envs
    steps = -(-settings.total_timesteps // n) * n + settings.gradient_steps
    with run.watch(name).running(), progress_bar(name, steps, "step") as bar:

        def update(more: int, shown: str) -> None:
            bar.set_postfix_str(shown, refresh=False)
            bar.update(more)

        yield update


def judged(entries: Mapping[str, Prompter]) -> dict[str, Prompter]:
    """Those that have a judge, under names that say so."""
    return {f"{name}{KEPT}": entry for name, entry in entries.items() if getattr(entry, "judge", None) is not None}
