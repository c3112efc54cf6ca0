"""Clicks that a module labels: actions, labels from what is observed alone, first clicks, reward, settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sam_gym.data import SegmentationData
from sam_gym.envs.base import EngineVectorEnv
from sam_gym.envs.semantic import SemanticSettings
from sam_gym.evaluation import evaluate
from sam_gym.evaluation.records import Record
from sam_gym.prompters import PROMPTERS, RandomPrompter, baselines, oracle_cells
from sam_gym.semantics.recalibration import BRANCHES, RecalibrationModule

ENV_ID, STAND_IN = "SamPromptSemantic-WBC-v0", "SamPromptSemantic-Synthetic-v0"  # where real images are missing
FAITHFUL = {"stop": False, "repeats": True, "first_clicks": "labeler"}

Make = Callable[..., EngineVectorEnv]


@pytest.fixture
def make(make_vec: Callable[..., Any], tiny: dict[str, Any], tiny_clip: str) -> Make:
    """Three white cells' crops of different sizes, labelled by a fresh module on a grid of 4 x 4."""

    env_id = ENV_ID if tiny["data"] == "real" else STAND_IN

    def made(n: int = 3, **changes: Any) -> EngineVectorEnv:
        return make_vec(
            n, env_id, **{"clip": tiny_clip, "labeler": "untrained", "grid": 4, "max_prompts": 4, **changes}
        )

    return made


def begin(env: EngineVectorEnv, seed: int = 0) -> dict[str, Any]:
    return env.reset(seed=seed, options={"image": list(range(env.num_envs))})[0]


class Sure(torch.nn.Module):
    """A module that holds the left half of every view for foreground, the more so the higher a place is."""

    needs_similarity = False

    def __init__(self, module: RecalibrationModule) -> None:
        super().__init__()
        self.settings = module.settings

    def forward(self, embedding: Any, mask: Any, similarity: Any = None) -> Any:
        side = 2 * self.settings.grid
        sign = torch.where(torch.arange(side) < side // 2, 1.0, -1.0)
        return (sign * torch.arange(side, 0, -1)[:, None]).expand(len(embedding), side, side)


def use_sure(env: EngineVectorEnv) -> None:
    assert env.engine.labeler is not None
    env.engine.labeler.use(Sure(env.engine.labeler.module))  # type: ignore[arg-type]


def test_actions_are_cells_and_stop(make: Make) -> None:
    assert make().single_action_space.n == 17
    assert make(stop=False).single_action_space.n == 16
    env = make()
    use_sure(env)
    begin(env)
    _, _, terminated, _, _ = env.step(np.array([4, 7, 16]))
    assert terminated.tolist() == [False, False, True]
    assert env.engine.episodes.prompts.tolist() == [1, 1, 0]
    assert env.engine.episodes.labels[:, 0].tolist() == [1, 0, -1]  # left half, right half
    masks = env.action_masks()
    assert not masks[0, 4]
    assert masks[1, 4]
    with pytest.raises(ValueError, match=r"0\.\.15 cells, 16 stop"):
        env.engine.step(np.array([0]), np.array([17]), dict)


def test_without_stop_episodes_take_all_their_steps_and_cells_come_again(make: Make) -> None:
    env = make(autoreset_mode="Disabled", **FAITHFUL)
    begin(env)
    for step in range(4):
        assert env.action_masks()[:, 5].all()
        _, _, terminated, _, _ = env.step(np.full(3, 5))
        assert terminated.all() == (step == 3)
    assert (env.engine.episodes.points[0] == env.engine.episodes.points[0, 0]).all()


def test_where_no_cell_is_left_and_no_stop_all_come_again(make: Make) -> None:
    env = make(stop=False)
    begin(env)
    inside = env.action_masks()
    env.engine.episodes.used[:] = True
    assert np.array_equal(env.action_masks(), inside)


@pytest.mark.parametrize("branch", BRANCHES)
def test_labels_are_the_modules_foreground(make: Make, branch: str) -> None:
    env = make()
    labeler, rows = env.engine.labeler, np.arange(3)
    assert labeler is not None
    labeler.use(RecalibrationModule(branch, env.engine.backend.embedding_channels, seed=5))
    begin(env)
    env.step(np.array([5, 9, 10]))
    embeddings, masks, maps = labeler.inputs(rows)
    assert (maps is None) == (branch == "implicit")
    with torch.no_grad():
        logits = labeler.module(embeddings, masks, maps)
    # the centre of cell (1, 2) of 4 x 4 is a corner of four places of 64 x 64
    middle = logits[:, 23:25, 39:41].mean(dim=(1, 2))
    assert labeler.labels(rows, np.tile(env.engine.actions.centres[6], (3, 1))).tolist() == (middle >= 0).int().tolist()
    env.step(np.full(3, 6))
    assert env.engine.episodes.labels[:, 1].tolist() == (middle >= 0).int().tolist()


def test_the_mask_is_the_observed_one_and_ones_before_the_first_prompt(make: Make) -> None:
    env = make()
    observations, rows = begin(env), np.arange(3)
    assert env.engine.labeler is not None
    assert (env.engine.labeler.inputs(rows)[1] == 1).all()
    observations = env.step(np.array([5, 9, 10]))[0]
    seen = observations["maps"][:, 3].reshape(3, 32, 2, 32, 2).mean(axis=(2, 4)) / 255
    np.testing.assert_allclose(env.engine.labeler.inputs(rows)[1], seen, atol=1e-6)
    assert (env.engine.labeler.inputs(rows, unprompted=True)[1] == 1).all()


@pytest.mark.parametrize("branch", BRANCHES)
def test_truth_enters_neither_labels_nor_first_clicks(
    make: Make, branch: str, monkeypatch: pytest.MonkeyPatch, same: Callable[[Any, Any], None]
) -> None:
    """The same steps with every truth turned upside down: the same prompts and observations."""
    seen, whole = [], SegmentationData.mask
    for permuted in (False, True):
        if permuted:
            monkeypatch.setattr(SegmentationData, "mask", lambda *a: np.ascontiguousarray(whole(*a)[::-1, ::-1]))
        env = make(first_clicks="labeler")
        assert env.engine.labeler is not None
        env.engine.labeler.use(RecalibrationModule(branch, env.engine.backend.embedding_channels, seed=5))
        story = [begin(env)]
        story += [env.step(np.array(actions))[0] for actions in ([0, 5, 10], [3, 6, 9])]
        seen.append([*story, env.engine.episodes.all_points, env.engine.episodes.all_labels])
    same(*seen)


def test_first_clicks_are_where_the_module_is_surest(make: Make) -> None:
    env = make(first_clicks="labeler")
    use_sure(env)
    observations = begin(env)
    episodes = env.engine.episodes
    assert episodes.given_labels[:, :2].tolist() == [[1, 0]] * 3
    assert (episodes.given_labels[:, 2:] == -1).all()
    width = episodes.image_size[:, 1]
    assert (episodes.given_points[:, 0, 0] < width / 2).all()
    assert (episodes.given_points[:, 1, 0] > width / 2 - 1).all()
    left, top, side = episodes.view.T
    # the first row of places whose centres lie in the image
    place = side / 64
    first = np.ceil((np.maximum(0, -top)) / place - 0.5)
    np.testing.assert_allclose(episodes.given_points[:, 0, 1], (first + 0.5) * place + top - 0.5, atol=1e-3)
    assert (episodes.prompts == 0).all()
    assert episodes.decoded.all()
    assert (observations["state"][:, 0] == 1).all()


def test_first_clicks_of_truth_are_drawn_for_training_only(make: Make) -> None:
    env = make(first_clicks="truth", split="train")
    for seed in range(3):
        begin(env, seed)
        for row in range(3):
            (x1, y1), (x0, y0) = env.engine.episodes.given_points[row, :2].astype(int)
            assert env.engine.truth(row)[y1, x1]
            assert not env.engine.truth(row)[y0, x0]
    again = env.engine.episodes.given_points.copy()
    begin(env, 2)
    assert np.array_equal(env.engine.episodes.given_points, again)
    with pytest.raises(ValueError, match="there to measure"):
        make(first_clicks="truth")


def test_points_of_the_caller_replace_first_clicks(make: Make) -> None:
    env = make(1, first_clicks="labeler")
    env.reset(seed=0, options={"image": 0, "points": [(3, 4, 1)]})
    assert env.engine.episodes.given_labels[0].tolist() == [1] + [-1] * 7


@pytest.mark.real_images
def test_hit_is_about_the_place_alone(make: Make) -> None:
    env = make(reward="hit")
    use_sure(env)
    begin(env)
    _, rewards, _, _, _ = env.step(np.array([5, 6, 0]))  # labelled 1, 0, 1
    episodes = env.engine.episodes
    under = [env.engine.truth(row)[tuple(np.round(episodes.points[row, 0, ::-1]).astype(int))] for row in range(3)]
    assert {False, True} == set(map(bool, under))
    assert rewards.tolist() == [1.0 if there else -1.0 for there in under]


def test_a_vector_env_is_its_single_envs(make: Make, same: Callable[[Any, Any], None]) -> None:
    together, alone = make(first_clicks="labeler"), make(1, first_clicks="labeler")
    begin(together)
    together.step(np.array([5, 6, 7]))
    for row in range(3):
        alone.reset(seed=0, options={"image": row})
        alone.step(np.array([5 + row]))
        for name in ("all_points", "all_labels"):
            same(getattr(alone.engine.episodes, name)[0], getattr(together.engine.episodes, name)[row])


def test_a_file_labels_as_the_module_it_holds(make: Make, tmp_path: Path, tiny: dict[str, Any]) -> None:
    fresh = make()
    assert fresh.engine.labeler is not None
    module = RecalibrationModule(embedding_channels=fresh.engine.backend.embedding_channels, seed=9)
    file = tmp_path / "module.safetensors"
    module.save(file)
    fresh.engine.labeler.use(module)
    stored = make(labeler=str(file))
    assert stored.engine.labeler is not None
    for env in (fresh, stored):
        begin(env)
    rows = np.arange(3)
    assert torch.equal(fresh.engine.labeler.logits(rows), stored.engine.labeler.logits(rows))
    assert len(stored.settings.rules()["labeler"]) == 64  # results know it by what it holds
    RecalibrationModule(embedding_channels=7).save(file)
    with pytest.raises(ValueError, match="embeddings of 7 channels"):
        make(labeler=str(file))
    with pytest.raises(ValueError, match="no recalibration module"):
        make(labeler="nowhere.safetensors")


def test_fresh_modules_are_equal(make: Make) -> None:
    one, other = (make().engine.labeler for _ in range(2))
    assert one is not None
    assert other is not None
    pairs = zip(one.module.parameters(), other.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labeler": "policy", "stop": False}, "go with a module"),
        ({"labeler": "policy", "repeats": True}, "go with a module"),
        ({"labeler": "policy", "first_clicks": "labeler"}, "go with a module"),
        ({"first_clicks": "labler"}, "did you mean 'labeler'"),
        ({"max_images": -1}, "max_images=-1 is outside"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SemanticSettings(**{"labeler": "untrained", **changes})


def test_some_images_are_the_same_each_time(make: Make) -> None:
    first, again = (make(1, split="train", max_images=9).engine.data for _ in range(2))
    assert first.image_ids == again.image_ids
    assert len(first.image_ids) == 9
    everything = make(1, split="train", max_images=5000).engine.data
    assert set(first.image_ids) < set(everything.image_ids)
    assert np.array_equal(first.image(first.image_ids[3]), everything.image(first.image_ids[3]))


def test_baselines(make: Make) -> None:
    assert list(baselines(make().settings)) == ["no prompt", "random", "oracle cells"]
    assert list(baselines(make(stop=False).settings)) == ["random", "oracle cells"]
    env = make(autoreset_mode="Disabled", stop=False)
    observations = begin(env)
    for _ in range(4):
        actions = RandomPrompter(3)(observations, env)
        assert env.action_masks()[np.arange(3), actions].all()
        observations = env.step(actions)[0]
    with pytest.raises(ValueError, match="a module does"):
        PROMPTERS["grid"]["oracle clicks"](0)({}, env)


@pytest.mark.real_images
def test_oracle_clicks_where_the_label_mends_most(make: Make) -> None:
    env = make()
    use_sure(env)
    begin(env)
    actions = oracle_cells({}, env)
    for row, action in enumerate(actions):
        truth = env.engine.truth(row)
        x, y = env.engine.episodes.view[row, :2] + env.engine.actions.centres[action] * env.engine.episodes.view[row, 2]
        assert action == 16 or (truth[int(y), int(x)] and action % 4 < 2)  # only misses as yet
    env.engine._truths = [torch.zeros_like(truth) for truth in env.engine._truths]  # type: ignore[arg-type]
    assert oracle_cells({}, env).tolist() == [16] * 3


def test_records_say_that_gains_are_over_the_first_clicks(make: Make) -> None:
    env = make(autoreset_mode="Disabled", **FAITHFUL)
    record = evaluate(RandomPrompter(), env, name="random", max_objects=3, progress=False)
    assert record.start == "the first clicks"
    again = Record.from_json(record.to_json())
    assert again.summary() == record.summary()
    assert again.summary()["gain_over_first_clicks"]["mean"] == pytest.approx(
        (record.iou[:, -1] - record.iou[:, 0]).mean()
    )
    assert "gain_over_first_clicks" not in again.provenance
