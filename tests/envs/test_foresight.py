"""Foresight: what it says of an action is what the action then does; nothing changes. And search, built on it."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from sam_gym.envs import SamPromptVectorEnv
from sam_gym.envs.foresight import Foresight
from sam_gym.prompters import SearchPrompter, candidate_clicks

N = 3
ROWS = np.arange(N)


def make(env_id: str = "SamPrompt-Synthetic-v0", **more: object) -> SamPromptVectorEnv:
    env = gymnasium.make_vec(
        env_id, num_envs=N, split="val", checkpoint="tiny_random", device="cpu",
        autoreset_mode="Disabled", **more,
    )  # fmt: skip
    env.reset(seed=5)
    return env  # type: ignore[return-value]


@pytest.mark.parametrize("attention", ["full", "foveated"])
def test_what_is_foreseen_is_what_happens(attention: str) -> None:
    env, rng = make(attention=attention), np.random.default_rng(0)
    foresight = Foresight(env.engine)
    for _ in range(2):
        actions = np.array([rng.choice(np.flatnonzero(allowed[:-1])) for allowed in env.action_masks()])
        before = env.engine.episodes.at(ROWS)
        rows, twice = np.tile(ROWS, 2), np.concatenate([actions, np.full(N, env.actions.stop)])
        present = env.engine.quality.iou.copy()
        foreseen = foresight.iou(rows, twice, quick=attention == "foveated")
        np.testing.assert_array_equal(foreseen[N:], present)
        for name, array in vars(before).items():
            np.testing.assert_array_equal(getattr(env.engine.episodes, name), array)
        env.step(actions)
        np.testing.assert_allclose(env.engine.quality.iou, foreseen[:N], atol=1e-3)


def test_the_fovea_is_given_its_part_of_a_whole_mask() -> None:
    whole, near = make(attention="full"), make(attention="foveated")
    window = near.engine.present(0)[0]
    cut = window.cut(whole.engine.present(0)[1])
    assert cut.shape == window.mask_size
    # a view of more cells than the small model has: the window is all of the image
    assert window.mask_size == whole.engine.backend.mask_size or window.side < window.embedding.features.shape[-1]
    assert np.isfinite(Foresight(whole.engine).iou(ROWS, np.zeros(N, np.int64))).all()


def test_search_never_loses_by_what_it_decodes_with() -> None:
    env = make(attention="foveated")
    prompter = SearchPrompter(seed=1, candidates=24)
    for _ in range(3):
        before = env.engine.quality.iou.copy()
        rows = np.flatnonzero(~env.episodes.terminated)
        actions = prompter({}, env)[rows]
        env.step_rows(rows, actions)
        gained = (env.engine.quality.iou - before)[rows]
        assert (gained[actions != env.actions.stop] > -1e-6).all()
        assert (gained[actions == env.actions.stop] == 0).all()


def test_candidates_are_allowed_clicks_with_the_preferred_among_them() -> None:
    env, rng = make(), np.random.default_rng(0)
    allowed = env.action_masks()[0]
    free = np.flatnonzero(allowed[:-1])
    allowed[free[0]] = False
    chosen = candidate_clicks(env, 0, allowed, 20, rng, np.array([free[0], free[1], free[-1]]))
    assert len(chosen) == len(np.unique(chosen)) == 20
    assert allowed[chosen].all()
    assert free[1] in chosen
    assert free[-1] in chosen
    assert len(candidate_clicks(env, 0, allowed, 10_000, rng)) == allowed[:-1].sum()


def test_who_labels_by_module_cannot_foresee() -> None:
    with pytest.raises(ValueError, match="make the environment without it"):
        Foresight(make("SamPromptSemantic-Synthetic-v0", labeler="untrained").engine)
