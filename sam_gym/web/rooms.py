"""Environments for the page: each with its images loaded once, and as many episodes as people want."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from sam_gym.envs.base import EngineVectorEnv
from sam_gym.envs.keeping import judge_by
from sam_gym.evaluation.run import make_evaluation_env
from sam_gym.prompters import Prompter, baselines

if TYPE_CHECKING:
    from sam_gym.sb3.saved import SavedAgent

T = TypeVar("T")

SPLIT = "test"
KEPT = 32
"""Episodes that are held for people who have not come back to them."""


class Kept(Generic[T]):
    """Things by a key that nobody guesses; the oldest go."""

    def __init__(self) -> None:
        self._things: OrderedDict[str, T] = OrderedDict()

    def put(self, thing: T) -> str:
        """Keep it; its key."""
        key = uuid.uuid4().hex
        self._things[key] = thing
        while len(self._things) > KEPT:
            self._things.popitem(last=False)
        return key

    def get(self, key: str) -> T:
        """The thing of a key; LookupError if it is gone."""
        if key not in self._things:
            raise LookupError("this episode is gone: begin another one")
        self._things.move_to_end(key)
        return self._things[key]


class Rooms:
    """Makes environments of one episode each, on images that are loaded once.

    Args:
        sam: checkpoint, device, precision.
        data: "auto", "real" or "synthetic".
        agent: The agent, or None.
    """

    def __init__(self, sam: Mapping[str, Any], data: str, agent: SavedAgent | None) -> None:
        self.agent = agent
        self._sam, self._data = dict(sam), data
        self._first: dict[str, EngineVectorEnv] = {}

    def open(self, env_id: str, **settings: Any) -> EngineVectorEnv:
        """An environment of its own for one episode."""
        attention = "full" if self._sam.get("precision") == "official" else "foveated"
        wanted = {**self._sam, "attention": attention, **settings}
        if env_id not in self._first:
            self._first[env_id] = make_evaluation_env(env_id, SPLIT, 1, data=self._data, **wanted)
        first = self._first[env_id]
        shared = {"dataset": first.settings.dataset, "data": self._data, "split": SPLIT}
        return type(first)(1, autoreset_mode="Disabled", images=first.data, **{**shared, **wanted})

    def prompters(self, env_id: str) -> dict[str, Prompter]:
        """Who can act in an environment, by name; the agent comes first, the oracle last."""
        env = self.open(env_id)
        scripted = baselines(env.settings)
        agent = {} if self.agent is None or not self._fits(env_id) else {"agent": self.agent.prompter(env)}
        return {**agent, **scripted}

    def seat(self, env_id: str, name: str) -> tuple[EngineVectorEnv, Prompter]:
        """An environment as a prompter needs it, and the prompter."""
        there = self.prompters(env_id)
        if name not in there:
            raise ValueError(f"nobody is called {name!r} here; there are {', '.join(there)}")
        settings = self.agent.settings if name == "agent" and self.agent is not None else {}
        judges = getattr(there[name], "judge", None) is not None
        env = self.open(env_id, **settings, **({"returns": "best_predicted"} if judges else {}))
        judge_by(env.engine, there[name])
        return env, there[name]

    def _fits(self, env_id: str) -> bool:
        assert self.agent is not None, "asked only where there is one"
        if self.agent.task != env_id.partition("-")[0]:
            return False
        try:
            self.agent.prompter(self.open(env_id, **self.agent.settings))
        except ValueError:  # of another SAM, or of other images than it was trained with
            return False
        return True


def play_through(env: EngineVectorEnv, prompter: Prompter, seed: int, look: Any = None) -> float:
    """One episode, posed by a seed, up to its end. Its last IoU. `look(observations)` is called before each action."""
    seen, _ = env.reset(seed=seed)
    while not env.episodes.terminated[0]:
        if look is not None:
            look(seen)
        action: NDArray = prompter(seen, env)
        seen, *_ = env.step(action)
    if look is not None:
        look(seen)
    return float(env.quality.iou[0])


def drawn_seed() -> int:
    """A seed that nobody has chosen."""
    return int(np.random.default_rng().integers(2**31))
