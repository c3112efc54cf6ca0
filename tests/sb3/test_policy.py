"""Policies on the grid: samples do not mix, logits lie as actions do, masks hold, and what is saved comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sam_gym.envs.episode import GridActions
from sam_gym.envs.observations import observation_space
from sam_gym.envs.references import observation_space as reference_space
from sam_gym.envs.shown_prompts import ShownClicks
from sam_gym.sb3 import LightPolicy, ModelPrompter, SamVecEnv, SketchPolicy, SpatialPolicy
from sam_gym.sb3.extractors import NormedLinear, _ChannelNorm
from sam_gym.sb3.policy import ActionHead

G = 16
CELLS = G * G
STOP = 2 * CELLS
POLICIES = (SpatialPolicy, LightPolicy)


class Watched(MaskablePPO):
    """Records the ratios that the first minibatches of each update see, and updates nothing."""

    def train(self) -> None:
        self.policy.set_training_mode(True)
        self.ratios, self.value_errors = [], []
        for batch in self.rollout_buffer.get(self.batch_size):
            values, log_prob, _ = self.policy.evaluate_actions(
                batch.observations, batch.actions.long().flatten(), action_masks=batch.action_masks
            )
            self.ratios.append((log_prob - batch.old_log_prob).exp().detach())
            self.value_errors.append((values.flatten() - batch.old_values).abs().detach())


def build(
    small: dict[str, Any],
    kind: type[SpatialPolicy] = LightPolicy,
    algorithm: type[MaskablePPO] = MaskablePPO,
    n: int = 4,
    **policy_kwargs: Any,
) -> MaskablePPO:
    env = SamVecEnv(gymnasium.make_vec(num_envs=n, autoreset_mode="SameStep", **small))
    settings: dict[str, Any] = {"n_steps": 4, "batch_size": 8, "n_epochs": 1, "seed": 0, "device": "cpu"}
    return algorithm(kind, env, policy_kwargs=policy_kwargs, **settings)


@pytest.fixture(scope="module", params=POLICIES)
def model(small: dict[str, Any], request: pytest.FixtureRequest) -> MaskablePPO:
    """A model whose heads are far from zero, so that differences can be seen."""
    model = build(small, request.param)
    with torch.no_grad():
        for head in (model.policy.action_net.click, model.policy.action_net.stop[-1], model.policy.value_net.net[-1]):
            head.weight.mul_(50)
    return model


def random_observations(n: int, seed: int = 0, channels: int = 32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "maps": torch.randint(0, 256, (n, 7, 64, 64), generator=generator, dtype=torch.uint8),
        "embedding": torch.randn(n, channels, G, G, generator=generator),
        "state": torch.rand(n, 5, generator=generator),
    }


def clicks(model: MaskablePPO, observations: dict[str, Tensor]) -> Tensor:
    """(N, 2, G, G) logits of clicks."""
    with torch.no_grad():
        return model.policy.outputs_and_values(observations)[0][:, :-1].unflatten(1, (2, G, G))


@pytest.mark.parametrize("training", [True, False])
def test_samples_do_not_mix(model: MaskablePPO, training: bool) -> None:
    eight, more = random_observations(8), random_observations(24, seed=1)
    many = {name: torch.cat([eight[name], 100 * more[name] if name == "embedding" else more[name]]) for name in eight}
    actions = torch.arange(8) * 60
    model.policy.set_training_mode(training)
    with torch.no_grad():
        alone = [*model.policy.outputs_and_values(eight), *model.policy.evaluate_actions(eight, actions)]
        among = [*model.policy.outputs_and_values(many), *model.policy.evaluate_actions(many, actions.repeat(4))]
    assert alone[0].std() > 0.03
    for small_batch, large_batch in zip(alone, among, strict=True):
        torch.testing.assert_close(large_batch[:8], small_batch, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [*POLICIES, SketchPolicy])
def test_ratios_are_one_before_any_update(small: dict[str, Any], kind: type[SpatialPolicy]) -> None:
    model = build(small, kind, Watched)
    with torch.no_grad():
        model.policy.action_net.click.weight.mul_(50)
    model.learn(16)
    ratios = torch.cat(model.ratios)
    assert len(ratios) == 16
    torch.testing.assert_close(ratios, torch.ones(16), rtol=0, atol=1e-5)
    assert torch.cat(model.value_errors).max() < 1e-5


@pytest.mark.parametrize("cell", [0, 3 * G + 12, 12 * G + 3, CELLS - 1])
def test_logits_lie_as_actions_do(cell: int) -> None:
    """A feature at a cell moves the two clicks there, and nothing else but stop."""
    head = ActionHead(8)
    column, row = (GridActions(G).centres[cell] * G).astype(int)
    features = torch.zeros(1, 8, G, G)
    with torch.no_grad():
        before = head(features)
        features[0, :, row, column] = 1
        moved = (head(features) != before)[0]
    assert before.shape == (1, STOP + 1)
    assert set(moved.nonzero().flatten().tolist()) == {cell, cell + CELLS, STOP}


@pytest.mark.parametrize("name", ["maps", "embedding"])
def test_what_is_seen_in_a_cell_acts_around_it(model: MaskablePPO, name: str) -> None:
    """Also where rows and columns differ, so that a transposed layout would show."""
    row, column = 3, 12
    observations = random_observations(1)
    before = clicks(model, observations)
    scale = observations[name].shape[-1] // G
    block = observations[name][..., row * scale : (row + 1) * scale, column * scale : (column + 1) * scale]
    block.copy_(255 - block if name == "maps" else -block)
    change = (clicks(model, observations) - before).abs()[0].amax(dim=0)
    # radius: 4 of the trunk's three convolutions, 1 of the two that reduce the maps
    reach = 4 if name == "embedding" else 5
    moved = torch.nonzero(change > 1e-6)
    assert change[row, column] > 1e-4
    assert (moved - torch.tensor([row, column])).abs().max() <= reach


@pytest.mark.parametrize(("down", "right"), [(1, 0), (0, 1), (2, -1)])
def test_translation_equivariance(model: MaskablePPO, down: int, right: int) -> None:
    observations = random_observations(2)
    moved = {
        "maps": observations["maps"].roll((4 * down, 4 * right), (-2, -1)),
        "embedding": observations["embedding"].roll((down, right), (-2, -1)),
        "state": observations["state"],
    }
    expected = clicks(model, observations).roll((down, right), (-2, -1))
    inner = (..., slice(7, 10), slice(7, 10))  # whose surroundings hold neither padding nor what was rolled over
    torch.testing.assert_close(clicks(model, moved)[inner], expected[inner], rtol=1e-4, atol=1e-4)
    assert (clicks(model, observations)[inner] - expected[inner]).abs().max() > 0.01


def test_masks_are_respected(model: MaskablePPO) -> None:
    observations = {name: tensor.numpy() for name, tensor in random_observations(16).items()}
    rng = np.random.default_rng(0)
    masks = rng.random((16, STOP + 1)) < 0.02
    masks[np.arange(16), rng.integers(STOP + 1, size=16)] = True
    masks[0] = False
    masks[0, 37] = True
    for deterministic in (True, False):
        actions, _ = model.predict(observations, deterministic=deterministic, action_masks=masks)
        assert masks[np.arange(16), actions].all()
        assert actions[0] == 37


def test_predicts_the_most_likely_allowed_action(model: MaskablePPO) -> None:
    tensors = random_observations(6)
    masks = np.random.default_rng(1).random((6, STOP + 1)) < 0.5
    with torch.no_grad():
        logits = model.policy.outputs_and_values(tensors)[0].numpy()
    expected = np.where(masks, logits, -np.inf).argmax(axis=1)
    observations = {name: tensor.numpy() for name, tensor in tensors.items()}
    np.testing.assert_array_equal(model.predict(observations, deterministic=True, action_masks=masks)[0], expected)


def test_saved_and_loaded_it_is_the_same(model: MaskablePPO, tmp_path: Path) -> None:
    model.save(tmp_path / "model.zip")
    loaded = MaskablePPO.load(tmp_path / "model.zip", device="cpu")
    observations = random_observations(4)
    with torch.no_grad():
        pairs = zip(
            loaded.policy.outputs_and_values(observations), model.policy.outputs_and_values(observations), strict=True
        )
        for ours, theirs in pairs:
            assert ours.equal(theirs)
    prompter, twin = ModelPrompter(model), ModelPrompter(loaded)
    assert prompter.identity == twin.identity
    assert ModelPrompter(model.policy).identity == prompter.identity
    with torch.no_grad():
        loaded.policy.action_net.click.bias.add_(1)
    assert prompter.identity != twin.identity


REFERRING: dict[str, Any] = {"features_extractor_kwargs": {"embedding_channels": 32}}


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("env_id", ["SamPrompt-Synthetic-v0", "SamPromptSemantic-Synthetic-v0"])
def test_references_learn_what_full_observations_learn(
    small: dict[str, Any], tiny_clip: str, tmp_path: Path, env_id: str, kind: type[SpatialPolicy]
) -> None:
    """Same seed, same rollouts, same updates, same weights; and saved and loaded it acts the same."""
    small = {**small, "id": env_id, "clip": tiny_clip}
    full = build(small, kind).learn(32)
    referring = build({**small, "observation": "reference"}, kind, **REFERRING).learn(32)
    weights, same = full.policy.state_dict(), referring.policy.state_dict()
    assert weights.keys() == same.keys()
    for name, tensor in weights.items():
        assert torch.equal(same[name], tensor), name
    referring.save(tmp_path / "model.zip")
    env = gymnasium.make_vec(num_envs=3, observation="reference", **small)
    seen, _ = env.reset(seed=5)
    loaded = MaskablePPO.load(tmp_path / "model.zip", device="cpu")
    actions = [ModelPrompter(model)(seen, env.unwrapped) for model in (referring, loaded)]  # type: ignore[arg-type]
    np.testing.assert_array_equal(*actions)


@pytest.mark.parametrize("kind", POLICIES)
def test_what_the_text_says_is_read(small: dict[str, Any], tiny_clip: str, kind: type[SpatialPolicy]) -> None:
    """By each sample its own, and by none where there is no text."""
    policy = build({**small, "id": "SamPromptSemantic-Synthetic-v0", "clip": tiny_clip}, kind).policy
    generator = torch.Generator().manual_seed(1)
    texts = torch.nn.functional.normalize(torch.randn(3, 12, generator=generator), dim=1)
    one = {name: tensor.repeat(3, *[1] * (tensor.ndim - 1)) for name, tensor in random_observations(1).items()}
    with torch.no_grad():
        logits, values = policy.outputs_and_values({**one, "text": texts})
        again, _ = policy.outputs_and_values({**one, "text": texts[[0, 0, 2]]})
    assert not logits[0].allclose(logits[1], rtol=0, atol=1e-5)
    assert not values[0].allclose(values[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(again[[0, 1, 2]], logits[[0, 0, 2]])
    assert build(small, kind).policy.features_extractor.read is None


def test_a_rollout_of_references_takes_little_memory() -> None:
    """16 environments x 128 steps: at most 16 MB, observations, action masks and all."""
    space = reference_space(ShownClicks(), 5)
    buffer = MaskableDictRolloutBuffer(128, space, spaces.Discrete(STOP + 1), device="cpu", n_envs=16)
    arrays = [*buffer.observations.values(), *(a for a in vars(buffer).values() if isinstance(a, np.ndarray))]
    assert buffer.action_masks.nbytes > 0
    assert sum(a.nbytes for a in arrays) <= 16e6


def test_size() -> None:
    policy = SpatialPolicy(observation_space(256, G, 2, 0), spaces.Discrete(STOP + 1), lambda _: 1e-3)
    assert sum(weights.numel() for weights in policy.parameters()) == 175_844


def test_learning_costs_less_than_the_world() -> None:
    """At most 60 MFLOP a sample, forward and backward, with MobileSAM's embeddings."""
    policy = LightPolicy(observation_space(256, G, 2, 0), spaces.Discrete(STOP + 1), lambda _: 1e-3)
    with FlopCounterMode(display=False) as counter:
        logits, values = policy.outputs_and_values(random_observations(2, channels=256))
        (logits.log_softmax(dim=1).square().mean() + values.mean()).backward()
    assert 20e6 < counter.get_total_flops() / 2 <= 60e6


@pytest.mark.parametrize("grid", [8, 10, 32])
@pytest.mark.parametrize(("signs", "stops"), [(2, True), (1, True), (1, False)])
def test_any_grid_and_any_kind_of_click(grid: int, signs: int, stops: bool) -> None:
    """Also grids that do not divide the maps' 64 pixels; and what lies in a corner acts in that corner."""
    actions = spaces.Discrete(signs * grid**2 + stops)
    policy = LightPolicy(observation_space(32, grid, 2, 0), actions, lambda _: 1e-3)
    seen = random_observations(1)
    seen["embedding"] = torch.randn(1, 32, grid, grid)
    with torch.no_grad():
        before, _ = policy.outputs_and_values(seen)
        seen["maps"][..., -8:, :8] = 255 - seen["maps"][..., -8:, :8]
        change = (policy.outputs_and_values(seen)[0] - before)[0].abs()
    assert before.shape == (1, actions.n)
    moved = change[: grid**2].view(grid, grid) > 1e-7
    assert moved[-1, 0]
    assert not moved[0].any()


def test_embeddings_are_normed_as_they_always_were() -> None:
    """The light layer's shortcut equals the 1x1 convolution of normed channels, outside the image too."""
    layer = NormedLinear(32, 8)
    embedding = 0.09 * torch.randn(2, 32, G, G) + 0.05
    embedding[0, :, 0] = 0
    expected = torch.nn.functional.conv2d(_ChannelNorm()(embedding), layer.weight, layer.bias)
    torch.testing.assert_close(layer(embedding), expected, rtol=1e-4, atol=1e-5)


def test_begins_near_uniform_choice(small: dict[str, Any]) -> None:
    with torch.no_grad():
        logits, values = build(small).policy.outputs_and_values(random_observations(4))
    assert logits.softmax(dim=1).max() < 10 / (STOP + 1)
    assert values.abs().max() < 0.5


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (4,)), spaces.Discrete(STOP), spaces.Discrete(2 * 8 * 8 + 1)])
def test_refuses_other_actions(space: spaces.Space, kind: type[SpatialPolicy]) -> None:
    with pytest.raises(ValueError, match=rf"{kind.__name__} acts on the grid: Discrete\(513\) is needed, got"):
        kind(observation_space(32, G, 2, 0), space, lambda _: 1e-3)


def test_stop_begins_as_likely_as_asked() -> None:
    seen = observation_space(32, G, 2, 0)
    policy = SpatialPolicy(seen, spaces.Discrete(STOP + 1), lambda _: 1e-3, stop_share=0.2)
    torch.manual_seed(0)
    state = seen["state"].shape
    observations = {
        "maps": torch.randint(0, 256, (4, *seen["maps"].shape), dtype=torch.uint8),
        "embedding": torch.randn(4, 32, G, G),
        "state": torch.rand(4, *state),
    }
    with torch.no_grad():
        odds = policy.get_distribution(observations).distribution.probs[:, STOP]
    assert ((odds > 0.15) & (odds < 0.26)).all()
    with pytest.raises(ValueError, match="stop_share=1.5 must be above 0 and below 1"):
        SpatialPolicy(seen, spaces.Discrete(STOP + 1), lambda _: 1e-3, stop_share=1.5)
