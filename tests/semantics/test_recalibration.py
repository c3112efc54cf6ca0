"""The recalibration module: it learns, samples do not see each other, seeds and files give it back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from sam_gym.semantics.recalibration import BRANCHES, RecalibrationModule, place_shares, recalibration_loss

CHANNELS, GRID = 12, 8


def module(branch: str, **settings: object) -> RecalibrationModule:
    return RecalibrationModule(branch, CHANNELS, **{"grid": GRID, "width": 16, "seed": 3, **settings})  # type: ignore[arg-type]


def some_input(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(n, CHANNELS, GRID, GRID, generator=generator)
    return embedding, *torch.rand(2, n, GRID, GRID, generator=generator)


def blobs(n: int) -> tuple[Tensor, Tensor]:
    """Embeddings in which one channel says, under noise, where the foreground is; and the foreground, (n, 2g, 2g)."""
    generator = torch.Generator().manual_seed(1)
    truth = torch.nn.functional.interpolate(torch.rand(n, 1, 2, 2, generator=generator), 2 * GRID)[:, 0] > 0.6
    embedding = torch.randn(n, CHANNELS, GRID, GRID, generator=generator)
    embedding[:, 0] += 4 * torch.nn.functional.avg_pool2d(truth[:, None].float(), 2)[:, 0]
    return embedding, truth.float()


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("context", [True, False])
def test_learns(branch: str, context: bool) -> None:
    net = module(branch, context=context)
    embedding, truth = blobs(24)
    mask, similarity = torch.ones(24, GRID, GRID), torch.ones(24, GRID, GRID)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    losses = []
    for _ in range(40):
        loss = recalibration_loss(net(embedding[:16], mask[:16], similarity[:16]), truth[:16])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.4 * losses[0]
    unseen = net(embedding[16:], mask[16:], similarity[16:]) > 0
    assert float((unseen == (truth[16:] > 0.5)).float().mean()) > 0.9


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_sample_does_not_depend_on_the_others(branch: str) -> None:
    net, (embedding, mask, similarity) = module(branch), some_input(5)
    together = net(embedding, mask, similarity)
    for i in range(5):
        alone = net(embedding[i : i + 1], mask[i : i + 1], similarity[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-5, atol=1e-5)
    embedding = embedding.requires_grad_()
    (gradient,) = torch.autograd.grad(net(embedding, mask, similarity)[2].sum(), embedding)
    assert gradient[2].abs().sum() > 0
    assert not gradient[[0, 1, 3, 4]].any()


@pytest.mark.parametrize("branch", BRANCHES)
def test_what_each_branch_reads(branch: str) -> None:
    net, (embedding, mask, similarity) = module(branch), some_input(2)
    before = net(embedding, mask, similarity)
    assert before.shape == (2, 2 * GRID, 2 * GRID)
    assert not torch.equal(net(embedding, 1 - mask, similarity), before)
    assert torch.equal(net(embedding, mask, 1 - similarity), before) == (branch == "implicit")
    if branch == "explicit":
        with pytest.raises(ValueError, match="similarity map"):
            net(embedding, mask)


def test_the_published_states_say_nothing_where_they_are_zero() -> None:
    (embedding, _, _), (other, _, _) = some_input(1), some_input(1, seed=9)
    nothing = torch.zeros(1, GRID, GRID)
    as_published, with_context = module("explicit", context=False), module("explicit")
    assert torch.equal(as_published(embedding, nothing, nothing), as_published(other, nothing, nothing))
    assert not torch.equal(with_context(embedding, nothing, nothing), with_context(other, nothing, nothing))


def test_reading_equals_one_convolution_of_all_states() -> None:
    net, (embedding, mask, similarity) = module("explicit"), some_input(3)
    seen: list[Tensor] = []
    net.body.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    net(embedding, mask, similarity)
    places = torch.nn.functional.layer_norm(embedding.permute(0, 2, 3, 1), (CHANNELS,)).permute(0, 3, 1, 2)
    states = torch.cat([places * mask[:, None], places * similarity[:, None], places], dim=1)
    torch.testing.assert_close(seen[0], torch.nn.functional.gelu(net.read(states)), rtol=1e-4, atol=1e-5)


def test_seed_gives_the_weights_and_leaves_torch_alone() -> None:
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    first, again, other = module("explicit"), module("explicit"), module("explicit", seed=4)
    assert torch.equal(torch.rand(1), wanted)
    inputs = some_input(1)
    assert torch.equal(first(*inputs), again(*inputs))
    assert not torch.equal(first(*inputs), other(*inputs))


@pytest.mark.parametrize("branch", BRANCHES)
def test_saved_and_loaded_it_is_the_same(branch: str, tmp_path: Path) -> None:
    net, inputs = module(branch, context=False), some_input(2)
    net.save(tmp_path / "module.safetensors")
    loaded = RecalibrationModule.load(tmp_path / "module.safetensors")
    assert loaded.settings == net.settings
    assert torch.equal(loaded(*inputs), net(*inputs))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no recalibration module .*nowhere"):
        RecalibrationModule.load(tmp_path / "nowhere.safetensors")
    (tmp_path / "text.safetensors").write_text("nothing of the kind")
    with pytest.raises(ValueError, match="is no safetensors file"):
        RecalibrationModule.load(tmp_path / "text.safetensors")
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="other weights"):
        RecalibrationModule.load(tmp_path / "other.safetensors")


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match="did you mean 'implicit'"):
        module("implict")
    with pytest.raises(ValueError, match="width=20 must be a multiple"):
        module("implicit", width=20)
    with pytest.raises(TypeError, match="depth"):
        module("implicit", depth=2)


def test_loss_by_hand() -> None:
    truth = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    sure = torch.tensor([[[50.0, -50.0], [-50.0, -50.0]]])
    assert float(recalibration_loss(sure, truth)) == pytest.approx(0, abs=1e-6)
    undecided = torch.zeros(1, 2, 2)  # Dice of .5 everywhere: (2 * .5 + 1) / (2 + 1 + 1)
    assert float(recalibration_loss(undecided, truth)) == pytest.approx(1 - 2 / 4 + np.log(2))
    inside = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    assert float(recalibration_loss(-sure, truth, inside)) > 40  # only the one place that is wrong counts
    assert float(recalibration_loss(sure * inside, truth, inside)) == pytest.approx(0, abs=1e-6)


def test_loss_is_the_mean_over_samples() -> None:
    logits, truth = torch.randn(3, 4, 4), torch.rand(3, 4, 4)
    each = [recalibration_loss(logits[i : i + 1], truth[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(recalibration_loss(logits, truth), torch.stack(each).mean())


def test_truth_in_the_places_of_a_view_by_hand() -> None:
    mask = np.zeros((2, 4), np.bool_)
    mask[0, :3] = True
    share, inside = place_shares(mask, np.array([0, -1, 4], np.float32), 2)  # a row of nothing above and below
    np.testing.assert_allclose(share, [[1, 0.5], [0, 0]])
    np.testing.assert_allclose(inside, [[0.5, 0.5], [0.5, 0.5]])
    share, inside = place_shares(mask, np.array([0, 0, 4], np.float32), 2)
    np.testing.assert_allclose(share, [[0.5, 0.25], [0, 0]])
    np.testing.assert_allclose(inside, [[1, 1], [0, 0]])


def test_places_finer_than_pixels() -> None:
    share, inside = place_shares(np.eye(2) > 0, np.array([0, 0, 2], np.float32), 8)
    assert np.array_equal(share, np.kron(np.eye(2), np.ones((4, 4))))
    np.testing.assert_allclose(inside, 1)
