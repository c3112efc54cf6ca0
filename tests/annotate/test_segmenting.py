"""Agents at work without truths do what they do with them; and SAM alone gives the masks of the boxes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO

from sam_gym.annotate.segmenting import BATCH, Segment, Segmenter, label_image
from sam_gym.data import UnlabelledData, load_data
from sam_gym.envs.base import EngineVectorEnv
from sam_gym.envs.prompt import SamPromptVectorEnv
from sam_gym.prompters import oracle_clicks
from sam_gym.sam import PromptBatch, SamBackend
from sam_gym.sb3 import ALGORITHMS, SamVecEnv
from sam_gym.sb3.saved import SavedAgent

SAM = {"checkpoint": "tiny_random", "device": "cpu", "precision": "exact"}

MODELS = [
    ("SamPrompt", "SpatialPolicy", {}),
    ("SamPrompt", "SpatialPolicy", {"observation": "reference", "grid": 8, "max_prompts": 3}),
    ("SamBoxRefine", "BoxPolicy", {}),
]


def save(folder: Path, task: str, policy: str, settings: dict[str, Any]) -> Path:
    """An untrained agent as a file."""
    env = gymnasium.make_vec(
        f"{task}-Synthetic-v0", num_envs=2, split="val", autoreset_mode="SameStep", **SAM, **settings
    )
    algorithm, policy_class = ALGORITHMS[policy]
    more: dict[str, Any] = {"judge": True} if policy == "SketchPolicy" else {}
    if "observation" in settings:
        more = {"features_extractor_kwargs": {"embedding_channels": 32}}
    model = algorithm(policy_class, SamVecEnv(env), n_steps=2, batch_size=4, seed=3, policy_kwargs=more)
    if policy == "BoxPolicy":
        model.policy.action_net.bias.data.fill_(0.3)  # an untrained one would leave all boxes alone
    model.save(folder / "model.zip")
    return folder / "model.zip"


@pytest.fixture(scope="module")
def case() -> tuple[NDArray[np.uint8], Any, list[list[float]]]:
    """An image with its data set, and the boxes of its seventeen objects, a little wrong."""
    data = load_data("synthetic-em", "val")
    rows = np.flatnonzero(data.objects.image_index == 0)[:17]
    return data.image(0), data, (data.objects.box[rows] + [-2, -2, 3, 1]).clip(0, 255).tolist()


def test_an_agent_that_judges_returns_the_mask_that_it_thinks_best(tmp_path: Path, case: Any) -> None:
    image, _, boxes = case
    agent = SavedAgent.load(save(tmp_path, "SamPrompt", "SketchPolicy", {}), "cpu")
    segmenter = Segmenter(agent, **SAM)
    assert segmenter.provenance()["returns"] == "best_predicted"
    data = UnlabelledData("images", ["image"], [image], [boxes[:4]])
    env = SamPromptVectorEnv(4, autoreset_mode="Disabled", images=data, **SAM, **agent.settings)
    prompter = agent.prompter(env)
    assert prompter.judge is not None
    poses = {row: {"image": 0, "object": row + 1, "cue": np.array(boxes[row], np.float32)} for row in range(4)}
    observations, judged, masks, rows = env.begin_rows(poses), [], [], np.arange(4)
    while len(rows):
        judged.append(prompter.judge(observations))
        masks.append([env.mask(row) for row in range(4)])
        observations, _ = env.step_rows(rows, prompter(observations, env)[rows])
        rows = rows[~env.episodes.terminated[rows]]
    judged.append(prompter.judge(observations))
    masks.append([env.mask(row) for row in range(4)])
    for row, segment in enumerate(segmenter(image, boxes[:4])):
        best = int(np.argmax(np.array(judged)[:, row]))
        assert segment.predicted_iou == pytest.approx(judged[best][row], abs=1e-5)
        assert segment.area == masks[best][row].sum()


@pytest.mark.parametrize(("task", "policy", "settings"), MODELS)
def test_truths_make_no_difference(tmp_path: Path, case: Any, task: str, policy: str, settings: dict) -> None:
    """Masks, prompts and estimates are those of an environment that knows the truth, whatever is done beside."""
    image, data, boxes = case
    agent = SavedAgent.load(save(tmp_path, task, policy, settings), "cpu")
    assert agent.task == task
    segments = Segmenter(agent, **SAM)(image, boxes)
    env: EngineVectorEnv = gymnasium.make_vec(
        f"{task}-Synthetic-v0", num_envs=1, split="val", autoreset_mode="Disabled", **SAM, **agent.settings
    )  # type: ignore[assignment]
    prompter = agent.prompter(env)
    assert len(segments) == len(boxes) > BATCH
    for row in (0, 1, BATCH):
        box, segment = boxes[row], segments[row]
        posed = {"image": 0, "object": int(data.objects.object_id[row]), "cue": np.array(box, np.float32)}
        observations, _ = env.reset(options=posed)
        terminated = np.zeros(1, np.bool_)
        while not terminated.all():
            observations, _, terminated, _, _ = env.step(prompter(observations, env))
        # What a policy says differs in its last bit with how many it is asked about, and with it a box that it moves.
        changed = (label_image(image.shape[:2], [1], [segment]) == 1) != env.engine.mask(0)
        assert changed.mean() <= (1e-4 if policy == "BoxPolicy" else 0)
        assert segment.prompts == env.engine.episodes.prompts[0]
        assert segment.predicted_iou == pytest.approx(observations["state"][0, 1], abs=1e-4)
    assert any(segment.prompts for segment in segments)


def test_boxes_alone_are_what_sam_says(case: Any) -> None:
    image, _, boxes = case
    segments = Segmenter(**SAM)(image, boxes)
    backend = SamBackend(**SAM)
    prompts = PromptBatch.from_lists(boxes=boxes)
    masks = backend.decode(backend.encode([image]) * len(boxes), prompts, full=True)
    for segment, mask in zip(segments, masks.full, strict=True):
        np.testing.assert_array_equal(label_image(image.shape[:2], [1], [segment]) == 1, mask[0].numpy())
        assert segment.prompts == 0


def test_episodes_without_truths(case: Any) -> None:
    """Rewards and IoU are NaN, and who looks at the truth is told that there is none."""
    image, _, boxes = case
    data = UnlabelledData("mine", ["a"], [image], [boxes])
    env = SamPromptVectorEnv(2, images=data, autoreset_mode="Disabled", reward={"iou": 1, "hit": 1}, **SAM)
    observations, infos = env.reset(seed=0, options={"image": 0, "object": [1, 17], "cue": np.array(boxes)[[0, 16]]})
    assert infos["source"].tolist() == ["mine"] * 2
    _, rewards, _, _, infos = env.step(np.array([3, 512]))
    assert np.isnan([*rewards, *infos["iou"], *infos["dice"]]).all()
    with pytest.raises(ValueError, match="mine has no truths"):
        oracle_clicks(observations, env)


def test_unlabelled_data(case: Any) -> None:
    image, _, boxes = case
    data = UnlabelledData("mine", ["a", "b"], [image, image[:50, :60, 0]], [boxes[:2], [[0, 0, 9, 9]]])
    assert data.objects.image_index.tolist() == [0, 0, 1]
    assert data.objects.object_id.tolist() == [1, 2, 1]
    assert data.image("b").shape == (50, 60, 3)
    with pytest.raises(ValueError, match="its mask would be empty"):
        data.mask("a", 1)
    with pytest.raises(ValueError, match="read-only"):
        data.image(0)[0, 0] = 1
    with pytest.raises(ValueError, match=r"boxes of a must have shape \(K, 4\), got \(4,\)"):
        UnlabelledData("mine", ["a"], [image], [boxes[0]])
    assert pickle.loads(pickle.dumps(data)).hash() == data.hash()


def test_no_boxes_no_segments(case: Any) -> None:
    """Whether an agent fits is asked of an environment without a box; nothing is encoded for that."""
    data = UnlabelledData("mine", ["a"], [np.zeros((1, 1, 3), np.uint8)], [np.zeros((0, 4))])
    env = SamPromptVectorEnv(1, images=data, **SAM)
    assert (len(env.engine.data.objects), env.single_action_space.n) == (0, 513)
    with pytest.raises(ValueError, match="a has no object 1"):
        env.reset(options={"image": 0, "object": 1})


def test_the_smallest_mask_is_on_top() -> None:
    large, small = (Segment(side, side, np.ones((8 - 2 * side,) * 2, np.bool_), 1.0, 0) for side in (0, 2))
    for order in ((large, small), (small, large)):
        values = [300 if one is small else 7 for one in order]
        picture = label_image((8, 10), values, order)
        assert picture.dtype == np.uint16
        assert np.unique(picture, return_counts=True)[1].tolist() == [16, 48, 16]
        assert picture[3, 3] == 300


def test_agents_that_do_not_fit(tmp_path: Path, case: Any) -> None:
    image, _, boxes = case
    (tmp_path / "text.zip").write_text("no model")
    with pytest.raises(ValueError, match="text.zip is not a model that PPO or MaskablePPO saved"):
        SavedAgent.load(tmp_path / "text.zip")
    for name in ("CartPole-v1", "Pendulum-v1"):
        PPO("MlpPolicy", gymnasium.make(name), n_steps=2, batch_size=2, device="cpu").save(tmp_path / name)
    with pytest.raises(ValueError, match="CartPole-v1.zip is not a model that PPO or MaskablePPO saved"):
        SavedAgent.load(tmp_path / "CartPole-v1.zip", "cpu")
    with pytest.raises(ValueError, match="Pendulum-v1.zip was trained for no task that begins with a box"):
        Segmenter(SavedAgent.load(tmp_path / "Pendulum-v1.zip", "cpu"), **SAM)
    agent = SavedAgent.load(save(tmp_path, "SamPrompt", "SpatialPolicy", {}), "cpu")
    assert isinstance(agent.model, MaskablePPO)
    with pytest.raises(ValueError, match="was trained for SamPrompt, not for SamBoxRefine"):
        agent.check_task("SamBoxRefine")
    env = SamPromptVectorEnv(1, images=UnlabelledData("mine", ["a"], [image], [boxes]), grid=8, **SAM)
    with pytest.raises(ValueError, match=r"trained with actions Discrete\(513\), here Discrete\(129\); embedding"):
        agent.prompter(env)
