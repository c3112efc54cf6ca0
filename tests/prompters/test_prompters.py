"""Scripted prompters on posed masks: the oracle follows RITM's rule, and every one keeps to what is allowed.

Those of boxes are in test_box_prompters.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter

from sam_gym.envs import SamPromptVectorEnv
from sam_gym.evaluation import evaluate
from sam_gym.prompters import (
    PROMPTERS,
    IterativeBox,
    RandomPrompter,
    box_only,
    centre,
    click_scores,
    depths,
    oracle_box,
    oracle_clicks,
    uncertainty,
)

G = 16
CELLS = G * G
STOP = 2 * CELLS
SIDE = 256  # of a generated section

Posed = Callable[..., SamPromptVectorEnv]


@pytest.fixture
def posed(monkeypatch: pytest.MonkeyPatch) -> Posed:
    """An environment whose masks and truths are given; the view of the default cue is pixels 8..248 by 15 px a cell."""

    def pose(
        *pairs: tuple[NDArray, NDArray], cue: tuple = (57.4, 57.4, 198.6, 198.6), **more: Any
    ) -> SamPromptVectorEnv:
        env = gymnasium.make_vec(
            "SamPrompt-Synthetic-v0", num_envs=len(pairs), split="val", checkpoint="tiny_random", device="cpu",
            autoreset_mode="Disabled", **more,
        )  # fmt: skip
        env.reset(seed=0, options={"image": 0, "cue": cue})
        monkeypatch.setattr(env.engine, "mask", lambda row: pairs[row][0])
        monkeypatch.setattr(env.engine, "truth", lambda row: pairs[row][1])
        return env

    return pose


def disc(x: float, y: float, radius: float) -> NDArray[np.bool_]:
    line, column = np.mgrid[:SIDE, :SIDE] + 0.5
    return (column - x) ** 2 + (line - y) ** 2 < radius**2


NOTHING = np.zeros((SIDE, SIDE), np.bool_)


def cell_at(env: SamPromptVectorEnv, x: float, y: float) -> int:
    left, top, side = env.engine.episodes.view[0]
    return int((y - top) / side * G) * G + int((x - left) / side * G)


def test_the_oracle_clicks_into_the_middle_of_the_error(posed: Posed) -> None:
    truth = disc(120, 90, 40)
    env = posed((NOTHING, truth), (truth, NOTHING), (disc(60, 200, 25), truth), (disc(60, 200, 45), truth))
    expected = [
        cell_at(env, 120, 90),  # all of it is missed
        cell_at(env, 120, 90) + CELLS,  # all of it is too much
        cell_at(env, 120, 90),  # what is missed is larger than what is too much
        cell_at(env, 60, 200) + CELLS,  # and the other way round
    ]
    assert oracle_clicks({}, env).tolist() == expected


def test_the_oracle_prefers_depth_to_area(posed: Posed) -> None:
    """RITM's rule: a wide thin error counts less than a round one of less area."""
    strip = np.zeros_like(NOTHING)
    strip[20:32, 10:246] = True
    spot = disc(123, 153, 25)
    assert strip.sum() > spot.sum()
    env = posed((NOTHING, strip | spot))
    assert oracle_clicks({}, env).tolist() == [cell_at(env, 123, 153)]


def test_the_oracle_stops_when_nothing_is_wrong(posed: Posed) -> None:
    truth = disc(120, 90, 40)
    env = posed((truth, truth), (NOTHING, NOTHING), (truth, disc(120, 90, 30)))
    assert oracle_clicks({}, env).tolist()[:2] == [STOP, STOP]
    assert oracle_clicks({}, env)[2] >= CELLS


def test_the_oracle_keeps_to_what_is_allowed(posed: Posed) -> None:
    truth = disc(120, 90, 20)
    env = posed((NOTHING, truth))
    clicked: list[int] = []
    for _ in range(5):
        action = int(oracle_clicks({}, env)[0])
        assert env.action_masks()[0, action]
        assert action not in clicked
        clicked.append(action)
        env.engine.episodes.used[0, action] = True
    scores = click_scores(env, 0)
    assert scores[clicked].tolist() == np.sort(scores)[::-1][:5].tolist()  # the next deepest each time
    env.engine.episodes.used[0] = True
    assert oracle_clicks({}, env).tolist() == [STOP]


@pytest.mark.parametrize(
    "cue",
    [(57.4, 57.4, 198.6, 198.6), (3, 5, 60, 40), (200, 180, 256, 256), (100.3, 90.7, 121.2, 118.9)],
)
def test_scores_are_distances_to_the_border_of_the_error(posed: Posed, cue: tuple) -> None:
    """Against every distance, measured one by one; the views of the second and third cue leave the image."""
    rng = np.random.default_rng(0)
    mask, truth = (gaussian_filter(rng.standard_normal((SIDE, SIDE)), 8) > 0 for _ in range(2))
    env = posed((mask, truth), cue=cue)
    left, top, side = (float(v) for v in env.engine.episodes.view[0])
    scores = click_scores(env, 0).reshape(2, G, G)
    assert (scores > 0).any(axis=(1, 2)).all()
    y0, y1 = max(0, int(np.floor(top))), min(SIDE, int(np.ceil(top + side)))
    x0, x1 = max(0, int(np.floor(left))), min(SIDE, int(np.ceil(left + side)))
    for sign, error in enumerate((truth & ~mask, mask & ~truth)):
        view = np.zeros((SIDE + 2, SIDE + 2), np.bool_)
        view[y0 + 1 : y1 + 1, x0 + 1 : x1 + 1] = error[y0:y1, x0:x1]
        right = np.argwhere(~view) - 1
        for row in range(G):
            for column in range(G):
                y, x = int(np.floor(top + (row + 0.5) / G * side)), int(np.floor(left + (column + 0.5) / G * side))
                wrong = 0 <= y < SIDE and 0 <= x < SIDE and error[y, x]
                nearest = np.sqrt(((right - (y, x)) ** 2).sum(axis=1).min()) if wrong else 0.0
                assert scores[sign, row, column] == pytest.approx(nearest, rel=1e-5), (sign, row, column)


def test_centre_clicks_once(posed: Posed) -> None:
    env = posed((NOTHING, NOTHING), (NOTHING, NOTHING))
    first = centre({}, env)
    assert first[0] in {cell_at(env, 128 + dx, 128 + dy) for dx in (-1, 1) for dy in (-1, 1)}
    env.step(np.array([first[0], STOP]))
    assert centre({}, env)[0] == STOP
    assert box_only({}, env).tolist() == [STOP, STOP]


def test_centre_stops_where_the_centre_is_forbidden(posed: Posed) -> None:
    env = posed((NOTHING, NOTHING))
    env.engine.episodes.used[0, centre({}, env)[0]] = True
    assert centre({}, env).tolist() == [STOP]


def test_random_never_picks_what_is_forbidden(posed: Posed) -> None:
    env = posed(*[(NOTHING, NOTHING)] * 3, cue=(0, 0, 60, 60), grid=4, max_prompts=9)
    picked = set()
    for seed in range(300):
        actions = RandomPrompter(seed)({}, env)
        assert env.action_masks()[np.arange(3), actions].all()
        picked |= set(actions.tolist())
    allowed = set(np.flatnonzero(env.action_masks()[0]).tolist())
    assert picked == allowed - {2 * 16}  # all that is allowed but stop
    assert 0 not in allowed
    assert len({RandomPrompter(seed)({}, env)[0] for seed in (0, 0, 0)}) == 1
    assert len({tuple(RandomPrompter(0)({}, env)) for env.engine.episodes.prompts[:] in range(9)}) > 4


def test_random_stops_where_all_is_used_up(posed: Posed) -> None:
    env = posed((NOTHING, NOTHING), grid=2)
    random = RandomPrompter(0)
    for _ in range(4):
        env.step(random({}, env))
    assert random({}, env).tolist() == [8]


def seen(env: SamPromptVectorEnv, *masks: NDArray) -> dict[str, NDArray]:
    """Observations in which the masks' probabilities (64, 64) are given."""
    maps = np.zeros((env.num_envs, 7, 64, 64), np.uint8)
    maps[:, 3] = np.stack(masks)
    return {"maps": maps}


def slope(crossing: float) -> NDArray[np.uint8]:
    """The probability falls from left to right and is .5 at `crossing` px."""
    column = np.arange(64) + 0.5
    return np.tile(np.clip(127.5 - (column - crossing) * 3, 0, 255), (64, 1)).astype(np.uint8)


def test_uncertainty_clicks_where_the_probability_is_nearest_one_half(posed: Posed) -> None:
    env = posed((NOTHING, NOTHING), (NOTHING, NOTHING))
    left, right = slope(8 * 4 + 1), slope(8 * 4 + 3)  # within the cell of column 8, before and after its centre
    for masks in (left, right):
        masks[:40] = 0
        masks[44:] = 255  # leaves the cells of row 10
    cell = 10 * G + 8
    assert uncertainty(seen(env, left, right), env).tolist() == [cell + CELLS, cell]  # as SAM leans at the centre
    env.engine.episodes.used[:, cell] = True
    assert uncertainty(seen(env, left, right), env).tolist() == [cell - 1, cell + 1 + CELLS]


def test_uncertainty_sees_what_agents_see(posed: Posed) -> None:
    """The same with either observation, whatever the truth is."""
    actions = []
    for observation in ("full", "reference"):
        env = posed((NOTHING, NOTHING), (NOTHING, disc(9, 9, 5)), observation=observation)
        observations, _ = env.reset(options={"image": 0, "object": 3, "cue": (57.4, 57.4, 198.6, 198.6)})
        actions += uncertainty(observations, env).tolist()
    assert len(set(actions)) == 1


@pytest.mark.parametrize("grid", [2, 5, 16, 32])
def test_uncertainty_finds_the_cell_on_any_grid(posed: Posed, grid: int) -> None:
    env = posed((NOTHING, NOTHING), grid=grid)
    for cell in (0, grid + 1, grid * grid - 1):
        x, y = ((env.engine.actions.centres[cell]) * 64).astype(int).clip(0, 63)
        mask = np.zeros((64, 64), np.uint8)
        mask[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = 140
        assert uncertainty(seen(env, mask), env).tolist() == [cell]
    env.engine.episodes.used[:] = True
    assert uncertainty(seen(env, mask), env).tolist() == [env.engine.actions.stop]


@pytest.mark.parametrize("name", ["centre", "oracle clicks", "uncertainty"])
def test_all_need_the_grid(posed: Posed, name: str) -> None:
    env = posed((NOTHING, NOTHING), action_mode="point")
    with pytest.raises(ValueError, match="grid"):
        PROMPTERS["grid"][name](0)({}, env)


def test_boxes_of_sam_prompt_are_not_moved_by_sides(posed: Posed) -> None:
    for prompter in (oracle_box, IterativeBox()):
        with pytest.raises(ValueError, match="needs SamBoxRefine.*here action_mode is 'grid'"):
            prompter({}, posed((NOTHING, NOTHING)))


@pytest.mark.weights
def test_order_of_the_baselines_on_real_sections(tiny: dict[str, Any]) -> None:
    env = gymnasium.make_vec(
        "SamPrompt-ISBI-v0", num_envs=8, autoreset_mode="Disabled", **{**tiny, "checkpoint": "mobile_sam"}
    )
    final = {
        name: evaluate(PROMPTERS["grid"][name](0), env, name=name, max_objects=24, progress=False).curve[-1]
        for name in ("box only", "random", "oracle clicks")
    }
    assert final["oracle clicks"] > final["box only"] + 0.05
    assert final["box only"] > final["random"] + 0.03


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 3), (40, 61)])
def test_depths_are_those_of_a_distance_transform(shape: tuple[int, int]) -> None:
    """To the last bit, for ragged regions and such that fill the array or nothing of it."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices(shape).reshape(2, -1)
    shares = (0.0, 0.3, 0.7, 0.95, 1.0)
    for share in shares:
        region = rng.random(shape) < share
        region[: shape[0] // 2] |= share > 0.5
        expected = distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1].astype(np.float32)
        assert (depths(region, rows, columns) == expected.ravel()).all()
