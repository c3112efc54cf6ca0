"""The stage of a run that trains the judge of masks, and the entries of its table in which the judge's choice counts.

Clone and agent have the same judge, so that what it gains is never taken for what PPO has learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from sam_gym._utils.progress import progress_bar
from sam_gym.prompters import Prompter
from sam_gym.sb3.judging import JudgeSettings, train_judge
from sam_gym.training.report import KEPT

if TYPE_CHECKING:
    from sam_gym.training.run import Training


def train_shared_judge(run: Training) -> None:
    """Train it on the masks of the best model, and give it to the clone as well."""
    settings = JudgeSettings(**run.state["config"]["judge"])
    policy: Any = run.load(run.folder / "best.zip").policy
    n = run.train.num_envs
    steps = -(-settings.total_timesteps // n) * n + settings.gradient_steps
    with run.watch("judge").running(), progress_bar("judge", steps, "step") as bar:

        def update(more: int, shown: str) -> None:
            bar.set_postfix_str(shown, refresh=False)
            bar.update(more)

        error = train_judge(policy, run.train, settings, run.seed, update)
    tqdm.write(f"judge: the IoU that it predicts of training masks is off by {error:.3f}")
    learned = {name: weight for name, weight in policy.state_dict().items() if name.startswith("judge_")}
    for name in ("clone.zip", "best.zip"):
        if (run.folder / name).is_file():
            run.model = run.load(run.folder / name)
            run.model.policy.load_state_dict(learned, strict=False)
            run.save_model(name)


def judged(entries: Mapping[str, Prompter]) -> dict[str, Prompter]:
    """Those that have a judge, under names that say so."""
    return {f"{name}{KEPT}": entry for name, entry in entries.items() if getattr(entry, "judge", None) is not None}
