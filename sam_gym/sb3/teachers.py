"""Teachers: what a policy is cloned from, task by task: labels, a loss, and what symmetries do to them.

They look at the ground truth through the oracles of `sam_gym.prompters`, while training only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sam_gym.envs.base import EngineVectorEnv
from sam_gym.envs.box_refine import BoxRefineSettings, SideMoves
from sam_gym.envs.episode import GridActions
from sam_gym.envs.foresight import Foresight
from sam_gym.envs.labelling import LabelledCells
from sam_gym.envs.prefer import Choices
from sam_gym.envs.report import RegionClicks
from sam_gym.envs.shown_prompts import BOX, MASK_BOX
from sam_gym.prompters import (
    candidate_clicks,
    click_scores,
    labelled_scores,
    offered_iou,
    oracle_box,
    region_scores,
    tried_iou,
)


class Teacher(ABC):
    """Labels states of one task.

    Attributes:
        measure: Name of the number that says how far a policy is from the teacher.
    """

    measure: ClassVar[str]

    @abstractmethod
    def label(
        self, observations: dict[str, NDArray], env: EngineVectorEnv, rng: np.random.Generator
    ) -> tuple[NDArray, NDArray[np.bool_]]:
        """Targets (N, A) of all rows, and which actions are allowed, (N, A) or (N, 1)."""

    @abstractmethod
    def act(self, targets: NDArray) -> NDArray:
        """The teacher's own actions."""

    @abstractmethod
    def own(self, policy: Any, observations: dict[str, NDArray], allowed: NDArray[np.bool_]) -> NDArray:
        """Actions drawn from the policy."""

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of what the policy's action head says, and `measure`; both scalars."""

    @abstractmethod
    def turn(self, arrays: dict[str, Tensor], which: int) -> dict[str, Tensor]:
        """One of the eight symmetries of the square, applied to "maps", "embedding", "state", "allowed", "target"."""


class ClickTeacher(Teacher):
    """Oracle clicks on the grid: the deeper a cell stands in the larger error region, the likelier it is.

    Of SamReport: the deeper it stands in the largest object that is not found.

    Args:
        sharpness: Power of the error depth.
    """

    measure = "kl_to_oracle"

    def __init__(self, sharpness: float) -> None:
        self.sharpness = sharpness

    def label(
        self, observations: dict[str, NDArray], env: EngineVectorEnv, rng: np.random.Generator
    ) -> tuple[NDArray, NDArray[np.bool_]]:
        """See `Teacher.label`; where a module labels the clicks, a cell counts with the label it would get now."""
        allowed = env.action_masks()
        scores: Iterable[NDArray[np.float32]]
        signs = 1
        if isinstance(env.actions, LabelledCells):
            scores = labelled_scores(env)
        elif isinstance(env.actions, RegionClicks):
            scores = region_scores(env)
        else:
            signs, scores = 2, [click_scores(env, row) for row in range(env.num_envs)]
        pairs = zip(scores, allowed, strict=True)
        return np.stack([click_target(s, a, self.sharpness, signs) for s, a in pairs]), allowed

    def act(self, targets: NDArray) -> NDArray:
        """The likeliest."""
        return targets.argmax(axis=1)

    def own(self, policy: Any, observations: dict[str, NDArray], allowed: NDArray[np.bool_]) -> NDArray:
        """See `Teacher.own`."""
        return policy.predict(observations, deterministic=False, action_masks=allowed)[0]

    def loss(self, output: Tensor, target: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy, and its excess over the target's entropy."""
        log_probability = output.masked_fill(~allowed, -1e8).log_softmax(dim=1)
        loss = -(target * log_probability).sum(dim=1).mean()
        entropy = -(target * target.clamp(min=1e-8).log()).sum(dim=1).mean()
        return loss, loss.detach() - entropy

    def turn(self, arrays: dict[str, Tensor], which: int) -> dict[str, Tensor]:
        """See `Teacher.turn`."""

        def actions(x: Tensor) -> Tensor:
            side = arrays["embedding"].shape[-1]
            return torch.cat([turn(x[:, :-1].unflatten(1, (-1, side, side)), which).flatten(1), x[:, -1:]], dim=1)

        return {
            **arrays,
            **{name: turn(arrays[name], which) for name in ("maps", "embedding")},
            **{name: actions(arrays[name]) for name in ("allowed", "target")},
        }


class SearchTeacher(ClickTeacher):
    """What clicks are worth, found by trying them: the target is softmax(IoU gained / temperature), and stop gains 0.

    Half of the candidates stand deepest in errors, up to a quarter is what the policy likes best, the rest is drawn.

    Args:
        env: The environment.
        policy: The one that is taught.
        candidates: Clicks that are tried in each state.
        temperature: In units of IoU; the lower, the more the best click counts.
    """

    measure = "kl_to_search"

    def __init__(self, env: EngineVectorEnv, policy: Any, candidates: int, temperature: float) -> None:
        self._foresight, self._policy = Foresight(env.engine), policy
        self._candidates, self._temperature = candidates, temperature

    def label(
        self, observations: dict[str, NDArray], env: EngineVectorEnv, rng: np.random.Generator
    ) -> tuple[NDArray, NDArray[np.bool_]]:
        """See `Teacher.label`."""
        allowed = env.action_masks()
        with torch.no_grad():
            seen = {name: torch.as_tensor(array, device=self._policy.device) for name, array in observations.items()}
            liked = self._policy.outputs_and_values(seen)[0].cpu().numpy()
        order = np.argsort(-np.where(allowed, liked, -np.inf)[:, :-1], axis=1)[:, : self._candidates // 4]
        tried = {
            row: candidate_clicks(env, row, allowed[row], self._candidates, rng, order[row])
            for row in range(env.num_envs)
        }
        found = tried_iou(self._foresight, tried)
        targets = np.zeros(allowed.shape, np.float32)
        for row, clicks in tried.items():
            gains = np.append(found[row] - env.engine.quality.iou[row], 0.0) / self._temperature
            weights = np.exp(gains - gains.max())
            targets[row, np.append(clicks, -1)] = weights / weights.sum()
        return targets, allowed


class ChoiceTeacher(ClickTeacher):
    """The truth about candidates: the target is softmax(IoU / temperature).

    Args:
        temperature: In units of IoU.
    """

    measure = "kl_to_oracle"

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature

    def label(
        self, observations: dict[str, NDArray], env: EngineVectorEnv, rng: np.random.Generator
    ) -> tuple[NDArray, NDArray[np.bool_]]:
        """See `Teacher.label`."""
        iou = offered_iou(env)
        weights = np.exp((iou - iou.max(axis=1, keepdims=True)) / self._temperature)
        return weights / weights.sum(axis=1, keepdims=True), env.action_masks()

    def turn(self, arrays: dict[str, Tensor], which: int) -> dict[str, Tensor]:
        """See `Teacher.turn`; candidates stay where they are."""
        return {**arrays, **{name: turn(arrays[name], which) for name in ("maps", "embedding")}}


class BoxTeacher(Teacher):
    """The object's tight box: moves of the four sides that lead there."""

    measure = "error_of_moves"

    def label(
        self, observations: dict[str, NDArray], env: EngineVectorEnv, rng: np.random.Generator
    ) -> tuple[NDArray, NDArray[np.bool_]]:
        """See `Teacher.label`."""
        return oracle_box(observations, env), np.ones((env.num_envs, 1), np.bool_)

    def act(self, targets: NDArray) -> NDArray:
        """The moves themselves, so that about every other state is one in which nothing is to do."""
        return targets

    def own(self, policy: Any, observations: dict[str, NDArray], allowed: NDArray[np.bool_]) -> NDArray:
        """See `Teacher.own`."""
        return policy.predict(observations, deterministic=False)[0]

    def loss(self, output: Tensor, target: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Smooth L1, and the mean absolute error.

        About every other state needs no move. For the absolute error alone, never to move is a stable answer to that,
        and one seed of two stayed there; for what is quadratic near zero it is not.
        """
        return F.smooth_l1_loss(output, target, beta=0.25), F.l1_loss(output, target).detach()

    def turn(self, arrays: dict[str, Tensor], which: int) -> dict[str, Tensor]:
        """See `Teacher.turn`."""
        state, shown = arrays["state"].clone(), BoxRefineSettings.shown_prompts
        for sides in (shown.entries(*BOX), shown.entries(*MASK_BOX)):
            box = state[:, sides]
            seen = (box[:, 2:] > box[:, :2]).any(dim=1, keepdim=True)  # zeros stand for an empty mask
            state[:, sides] = torch.where(seen, _turn_sides(box, which, lambda x: 1 - x), box)
        return {
            **arrays,
            **{name: turn(arrays[name], which) for name in ("maps", "embedding")},
            "state": state,
            "target": _turn_sides(arrays["target"], which, lambda x: x),
        }


def turn(x: Tensor, which: int) -> Tensor:
    """One of the eight symmetries of the square on the last two axes."""
    if which & 1:
        x = x.flip(-1)
    if which & 2:
        x = x.flip(-2)
    return x.transpose(-1, -2) if which & 4 else x


def _turn_sides(sides: Tensor, which: int, mirrored: Any) -> Tensor:
    """Numbers of the left, top, right, bottom side, (N, 4); `mirrored` is what a number becomes on the other side."""
    left, top, right, bottom = sides.unbind(dim=1)
    if which & 1:
        left, right = mirrored(right), mirrored(left)
    if which & 2:
        top, bottom = mirrored(bottom), mirrored(top)
    if which & 4:
        left, top, right, bottom = top, left, bottom, right
    return torch.stack([left, top, right, bottom], dim=1)


def teacher_of(
    env: EngineVectorEnv, sharpness: float, policy: Any = None, candidates: int = 0, temperature: float = 1.0
) -> Teacher:
    """The teacher for an environment's kind of action.

    Args:
        env: The environment.
        sharpness: Of `ClickTeacher`.
        policy: The one that is taught.
        candidates: Clicks that are tried in each state (`SearchTeacher`); 0: the oracle teaches, who tries none.
        temperature: Of `SearchTeacher` and `ChoiceTeacher`.

    Raises:
        ValueError: There is none; says which actions have one.
    """
    actions = env.actions
    if candidates:
        if not isinstance(actions, GridActions):
            raise ValueError(
                f"candidates={candidates}: search teaches clicks that the agent labels (action_mode='grid'), not "
                f"action_mode={env.settings.action_mode!r} here; leave it at 0, then the oracle teaches"
            )
        return SearchTeacher(env, policy, candidates, temperature)
    labelled = isinstance(actions, LabelledCells) and actions.stop is not None
    if isinstance(actions, GridActions | RegionClicks) or labelled:
        return ClickTeacher(sharpness)
    if isinstance(actions, SideMoves):
        return BoxTeacher()
    if isinstance(actions, Choices):
        return ChoiceTeacher(temperature)
    without = " without stop" if isinstance(actions, LabelledCells) else ""
    raise ValueError(
        f"there is nobody to clone for action_mode={env.settings.action_mode!r}{without}: the oracles teach clicks on "
        "the grid with stop (action_mode='grid'), SamBoxRefine's moves (action_mode='continuous'), SamPrefer's "
        "choices, SamReport's clicks"
    )


def click_target(
    scores: NDArray[np.float32], allowed: NDArray[np.bool_], sharpness: float, signs: int = 2
) -> NDArray[np.float32]:
    """Error depths (signs*G*G,) -> distribution over actions: the deeper in its error a click stands, the likelier.

    Only the sign whose error region is deeper gets any; stop gets all where no allowed cell stands in an error.
    """
    by_sign = np.where(allowed[:-1], scores, 0).reshape(signs, -1)
    best = by_sign.max(axis=1)
    scores = np.where(np.arange(signs)[:, None] == best.argmax(), by_sign, 0).ravel()
    target = np.zeros(len(allowed), np.float32)
    if scores.max() > 0:
        weights = (scores / scores.max()) ** sharpness
        target[:-1] = weights / weights.sum()
    else:
        target[-1] = 1
    return target
