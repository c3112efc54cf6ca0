"""Denoise: draw a picture of a cell of the class asked for, in T steps of a diffusion model.

Settings, engine, single and vector environment; no SAM is in it. Seeding, autoreset and Gymnasium's interfaces are
those of `sam_gym.envs.episodic`; the network, its steps and the classifiers are `sam_gym.generative`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from sam_gym._utils.devices import resolve_device
from sam_gym._utils.naming import unknown
from sam_gym.envs.episodic import BatchEnv, SingleEnv, checked_num_envs, checked_render_mode
from sam_gym.envs.rendering import CAPTION, INK, PAPER, caption_font, film_strip
from sam_gym.envs.settings import Parsed
from sam_gym.generative.classifier import Classifier
from sam_gym.generative.files import weights_file
from sam_gym.generative.model import Denoiser, ModelError, to_pixels
from sam_gym.generative.schedule import SIGMA_FLOOR, STEPS, TRAINED_STEPS, Schedule
from sam_gym.generative.sources import SETS, SIZE

SAMPLE, NOISE = ACTION_MODES = ("sample", "noise")
LOG_PROBABILITY, CORRECT = REWARDS = ("log_probability", "correct")

SHAPE = (3, SIZE, SIZE)
LIMIT = 10.0  # of the numbers in an action: normal noise is never so large, and agents for bounded actions want a bound
FRAMES, ZOOM = 7, 2  # pictures in a row of the film strip, and how much they are enlarged


@dataclass(frozen=True)
class DenoiseSettings(Parsed):
    """Arguments of Denoise environments; all values survive JSON.

    Attributes:
        dataset: Set of pictures, a key of `sam_gym.generative.sources.SETS`.
        action_mode: "sample" or "noise".
        reward: "log_probability" or "correct".
        steps: T.
        guidance: Of the frozen model's mean, with action_mode "noise"; 1 is without.
        sigma_floor: Smallest standard deviation of a step.
        model: File of the frozen diffusion model; None takes that of `dataset`.
        classifier: File of the reward's classifier; None takes that of `dataset`.
        device: "auto", "cpu", "cuda" ...
    """

    dataset: str = "smears"
    action_mode: str = SAMPLE
    reward: str = LOG_PROBABILITY
    steps: int = STEPS
    guidance: float = 1.0
    sigma_floor: float = SIGMA_FLOOR
    model: str | None = None
    classifier: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, known in (("dataset", SETS), ("action_mode", ACTION_MODES), ("reward", REWARDS)):
            if getattr(self, name) not in known:
                raise ValueError(unknown(name, getattr(self, name), known))
        if type(self.steps) is not int or not 1 <= self.steps <= TRAINED_STEPS:
            raise ValueError(f"steps={self.steps!r} is not an integer in 1..{TRAINED_STEPS}")
        for name, low, high in (("guidance", 0.0, 20.0), ("sigma_floor", 1e-3, 1.0)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)} is outside {low:g}..{high:g}")


@dataclass
class Denoised:
    """N episodes as arrays.

    Attributes:
        label: (N,) int64 class asked for.
        left: (N,) int64 steps to go.
        steps: (N,) int32 steps so far.
        begun: (N,) bool: whether the row has an episode.
    """

    label: NDArray[np.int64]
    left: NDArray[np.int64]
    steps: NDArray[np.int32]
    begun: NDArray[np.bool_]

    @property
    def terminated(self) -> NDArray[np.bool_]:
        """(N,) bool: no step is left."""
        return self.begun & (self.left == 0)


@dataclass(frozen=True, eq=False)
class Start:
    """Where an episode begins: a class and noise (3, 32, 32)."""

    label: int
    noise: NDArray[np.float32]


class DenoiseEngine:
    """N episodes of denoising, advanced together.

    Args:
        settings: See `DenoiseSettings`.
        num_envs: N.

    Attributes:
        classes: What can be asked for.
        classifier: The frozen one that gives the reward.
        schedule: The steps.
        episodes: The episodes as arrays.

    Raises:
        ModelError: Weights that are not there or do not fit, or diffusers is not installed.
    """

    def __init__(self, settings: DenoiseSettings, num_envs: int) -> None:
        self.settings, n = settings, num_envs
        self.device = resolve_device(settings.device)
        path = settings.classifier or weights_file(settings.dataset, "reward")
        self.classifier = Classifier.load(path).to(self.device)
        self.classes = self.classifier.classes
        self.schedule = Schedule(settings.steps, sigma_floor=settings.sigma_floor).to(self.device)
        if settings.action_mode == NOISE:
            _ = self.model  # what it lacks is said now, not at the first step
        self.action_space: spaces.Space = spaces.Box(-LIMIT, LIMIT, SHAPE, np.float32)
        samples = spaces.Box(-np.inf, np.inf, SHAPE, np.float32)
        self.observation_space = spaces.Dict(
            {"x": samples, "t": spaces.Discrete(settings.steps + 1), "class": spaces.Discrete(len(self.classes))}
        )
        whole = np.zeros(n, np.int64)
        self.episodes = Denoised(whole.copy(), whole.copy(), np.zeros(n, np.int32), np.zeros(n, np.bool_))
        self._x = torch.zeros(n, *SHAPE, device=self.device)
        self._said = np.zeros((n, len(self.classes)))  # log-probabilities of what was drawn
        self._film = np.zeros((n, settings.steps + 1, SIZE, SIZE, 3), np.uint8)

    @cached_property
    def model(self) -> Denoiser:
        """The frozen diffusion model; agents that act in samples may begin from a copy of it."""
        path = self.settings.model or weights_file(self.settings.dataset, "base")
        model = Denoiser.load(path).to(self.device)
        if model.classes != self.classes:
            raise ModelError(f"{path} draws {list(model.classes)}, and the classifier knows {list(self.classes)}")
        return model

    def pose(self, rng: np.random.Generator, request: Mapping[str, Any] | None = None) -> Start:
        """Draw a class, unless "class" (its number or name) is requested, and noise.

        Raises:
            ValueError: Another request, or a class that the pictures lack.
        """
        request = dict(request or {})
        wanted = request.pop("class", None)
        if request:
            raise ValueError(unknown("reset option", next(iter(request)), ["class", "reset_mask"]))
        label = int(rng.integers(len(self.classes)))  # drawn in any case: the noise is the same for every class
        if wanted is not None:
            label = self._label(wanted)
        return Start(label, rng.standard_normal(SHAPE, np.float32))

    def _label(self, wanted: Any) -> int:
        named = {name: k for k, name in enumerate(self.classes)}
        if isinstance(wanted, str) and wanted in named:
            return named[wanted]
        if isinstance(wanted, int | np.integer) and not isinstance(wanted, bool) and 0 <= wanted < len(self.classes):
            return int(wanted)
        listed = ", ".join(f"{k} {name!r}" for k, name in enumerate(self.classes))
        raise ValueError(f"the pictures of {self.settings.dataset} have no class {wanted!r}; there are {listed}")

    def begin(self, poses: Mapping[int, Start]) -> None:
        """See `sam_gym.envs.episodic.Engine.begin`."""
        episodes = self.episodes
        for row, start in poses.items():
            episodes.label[row], episodes.left[row], episodes.steps[row] = start.label, self.settings.steps, 0
            episodes.begun[row] = True
            self._x[row] = torch.as_tensor(start.noise, device=self.device)
        self._filmed(np.fromiter(poses, np.intp, len(poses)))

    @torch.no_grad()
    def step(
        self, rows: NDArray[np.intp], actions: NDArray, fresh: Callable[[], Mapping[int, Start]]
    ) -> tuple[NDArray[np.float64], dict[int, tuple[dict, dict]]]:
        """See `sam_gym.envs.episodic.Engine.step`; at most one call of the network, and one of the classifier."""
        if len(rows):
            self._act(rows, actions)
        rewards = self._rewards(rows)
        begun = fresh()
        finals = {row: (self.observation(row), self.info(row)) for row in begun if row in rows}
        self.begin(begun)
        return rewards, finals

    def _act(self, rows: NDArray[np.intp], actions: NDArray) -> None:
        given = np.asarray(actions, np.float32)
        if given.shape != (len(rows), *SHAPE):
            raise ValueError(f"an action is {SHAPE} numbers, got {given.shape[1:]}")
        inside = (np.abs(given) <= LIMIT).reshape(len(rows), -1).all(1)  # NaN fails the comparison too
        if not inside.all():
            raise ValueError(
                f"an action's numbers are in -{LIMIT:g}..{LIMIT:g}; those of rows {rows[~inside].tolist()} are not, or "
                "are NaN"
            )
        at, action = torch.as_tensor(rows, device=self.device), torch.as_tensor(given, device=self.device)
        if self.settings.action_mode == NOISE:
            left, label = (
                torch.as_tensor(one[rows], device=self.device) for one in (self.episodes.left, self.episodes.label)
            )
            mean = self.model.next_mean(self.schedule, self._x[at], left, label, self.settings.guidance)
            action = mean + self.schedule.sigma[left - 1][:, None, None, None] * action
        self._x[at] = action
        self.episodes.left[rows] -= 1
        self.episodes.steps[rows] += 1
        self._filmed(rows)

    def _rewards(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        rewards = np.zeros(len(rows))
        ended = rows[self.episodes.terminated[rows]]
        if len(ended):
            self._said[ended] = self.classifier(self._x[torch.as_tensor(ended, device=self.device)]).cpu().numpy()
            asked, said = self.episodes.label[ended], self._said[ended]
            worth = said[np.arange(len(ended)), asked] if self.settings.reward == LOG_PROBABILITY else (
                said.argmax(1) == asked
            )  # fmt: skip
            rewards[np.isin(rows, ended)] = worth
        return rewards

    def _filmed(self, rows: NDArray[np.intp]) -> None:
        self._film[rows, self.settings.steps - self.episodes.left[rows]] = to_pixels(self._x[torch.as_tensor(rows)])

    # ------------------------------------------------------------------ looking

    def observations(self) -> dict[str, NDArray]:
        """See `sam_gym.envs.episodic.Engine.observations`."""
        episodes = self.episodes
        return {"class": episodes.label.copy(), "t": episodes.left.copy(), "x": self._x.cpu().numpy().copy()}

    def observation(self, row: int) -> dict[str, Any]:
        """See `sam_gym.envs.episodic.Engine.observation`."""
        episodes = self.episodes
        return {"class": episodes.label[row], "t": episodes.left[row], "x": self._x[row].cpu().numpy().copy()}

    def info(self, row: int) -> dict[str, Any]:
        """The class by name; of an episode that has ended also what the classifier says of it."""
        asked = int(self.episodes.label[row])
        info: dict[str, Any] = {"class": self.classes[asked]}
        if self.episodes.terminated[row]:
            said = self._said[row]
            info |= {"log_probability": float(said[asked]), "correct": bool(said.argmax() == asked)}
        return info

    def samples(self) -> Tensor:
        """(N, 3, 32, 32) float32, a copy of what all rows have drawn so far."""
        return self._x.clone()

    def picture(self, row: int) -> NDArray[np.uint8]:
        """The episode as a film strip, (H, W, 3) uint8: from noise to what is drawn so far, and a caption."""
        left = int(self.episodes.left[row])
        shown = self._film[row].copy()
        shown[self.settings.steps - left + 1 :] = PAPER  # not drawn yet
        strip = film_strip([one.repeat(ZOOM, 0).repeat(ZOOM, 1) for one in shown], FRAMES)
        canvas = Image.new("RGB", (strip.shape[1], strip.shape[0] + CAPTION), PAPER)
        canvas.paste(Image.fromarray(strip), (0, CAPTION))
        draw, info = ImageDraw.Draw(canvas), self.info(row)
        draw.text((10, 6), f"asked for: {info['class']}", fill=INK, font=caption_font(20))
        said = f"{left} of {self.settings.steps} steps left"
        if left == 0:
            best = int(self._said[row].argmax())
            said = f"classifier: {self.classes[best]} {np.exp(self._said[row, best]):.2f}"
        draw.text((10, 36), said, fill=INK, font=caption_font(15))
        return np.asarray(canvas)


class DenoiseEnv(SingleEnv):
    """Draw a picture of a cell of the class asked for, step by step, with a diffusion model.

    ## Description

    One episode is one picture of 32 x 32 pixels. It begins as noise and a class, for example "two lobes", and is
    denoised in T = 20 steps. What comes out is judged by a frozen classifier: does it show the class that was asked
    for? Seen like this, drawing with a diffusion model is a Markov decision process (Black et al. 2023, DDPO,
    arXiv 2305.13301; on medical images RL4Med-DDPO, Saremi et al. 2025, arXiv 2503.15784), and the diffusion model is
    a policy that reinforcement learning can improve: `agents/train_ddpo.py`. No SAM is in it.

    Steps are DDIM's with eta 1 (Song et al. 2021, arXiv 2010.02502): the next sample is drawn from a normal
    distribution around the model's mean. Its standard deviation is at least `sigma_floor`, since the last step would
    have none.

    ## Action Space

    `Box(-10, 10, (3, 32, 32), float32)`: the next sample, x_(t-1). Whoever acts brings a diffusion model along, say a
    copy of `env.unwrapped.engine.model`, and draws from it.

    With `action_mode="noise"` the action is the noise beside the frozen model's mean, in standard deviations: the next
    sample is mean + sigma * action. Standard normal actions are the plain diffusion model then, and any agent for
    continuous actions can act. (`action_space.sample()` is far noisier: it is uniform in -10..10.)

    ## Observation Space

    A `Dict`:

    | key     | shape, dtype            | content                                                     |
    |---------|-------------------------|-------------------------------------------------------------|
    | `x`     | (3, 32, 32) float32     | the sample as it is; at the end red, green, blue in about -1..1 |
    | `t`     | `Discrete(T + 1)`       | steps to go: T at the start, 0 at the end                   |
    | `class` | `Discrete(C)`           | the class asked for                                         |

    ## Rewards

    0 until the last step; then the log-probability that the frozen classifier gives the class asked for. With
    `reward="correct"` it is 1 where that class is the likeliest, else 0.

    ## Starting State

    A class drawn uniformly, and standard normal noise. `reset(options={"class": "two lobes"})`, or its number, asks
    for one; the noise depends on the seed alone.

    ## Episode End

    Terminates after T steps. It truncates only if `max_episode_steps` is passed to `gymnasium.make`.

    ## Information

    `class`: its name. At the end also `log_probability` of the class asked for and `correct`.

    ## Arguments

    ```python
    import gymnasium, sam_gym
    env = gymnasium.make("Denoise-Smears-v0", action_mode="noise", render_mode="rgb_array")
    ```

    | argument      | default           | meaning                                                               |
    |---------------|-------------------|-----------------------------------------------------------------------|
    | `dataset`     | "smears"          | "smears", "dsb2018-153", "wbc-cell" or "synthetic-em"                 |
    | `action_mode` | "sample"          | "sample" or "noise"                                                   |
    | `reward`      | "log_probability" | "log_probability" or "correct"                                        |
    | `steps`       | 20                | T                                                                     |
    | `guidance`    | 1.0               | classifier-free guidance of the frozen model, with "noise"; 1: none   |
    | `sigma_floor` | 0.05              | smallest standard deviation of a step                                 |
    | `model`       | None              | file of a diffusion model, instead of the data set's                  |
    | `classifier`  | None              | file of a classifier, instead of the data set's                       |
    | `device`      | "auto"            | where the networks run                                                |
    | `render_mode` | None              | "rgb_array": a film strip from noise to picture                       |

    `python -m sam_gym.generative.train_base` trains the models of a data set; environments find them by themselves.

    ## Vectorized environment

    `gymnasium.make_vec("Denoise-Smears-v0", num_envs=64)` gives `DenoiseVectorEnv`: the same step function over 64
    pictures, with one call of the network per step. `autoreset_mode` is "NextStep" (default), "SameStep" or "Disabled",
    as a string.

    ## Version History

    * v0: initial version (sam_gym 0.1.0).
    """

    def __init__(self, *, render_mode: str | None = None, **settings: Any) -> None:
        checked_render_mode(render_mode)
        self.settings = DenoiseSettings.parse(settings)
        engine = DenoiseEngine(self.settings, 1)
        super().__init__(engine, engine.action_space, engine.observation_space, render_mode)


class DenoiseVectorEnv(BatchEnv):
    """N Denoise episodes with one call of the network per step; see `DenoiseEnv` for what an episode is.

    Autoreset, seeding and options are those of `sam_gym.envs.episodic.BatchEnv`.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = "NextStep",
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        checked_num_envs(num_envs)
        checked_render_mode(render_mode)
        autoreset_mode = AutoresetMode(autoreset_mode)
        self.settings = DenoiseSettings.parse(settings)
        engine = DenoiseEngine(self.settings, num_envs)
        spaces = engine.action_space, engine.observation_space
        super().__init__(engine, num_envs, *spaces, autoreset_mode, max_episode_steps, render_mode)
