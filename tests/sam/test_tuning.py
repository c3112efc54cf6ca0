"""Tuning: what is trained is what the method says, on boxes as published, and it can be interrupted."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from torch import Tensor

from sam_gym.data import SegmentationData, load_data
from sam_gym.sam import PromptBatch, SamBackend, checkpoint_id, load_sam, save_decoder, tuning
from sam_gym.sam.backend import get_backend
from sam_gym.sam.tuning import METHODS, Tuner, TuningSettings, mask_loss

Make = Callable[..., Tuner]

# Of the mask decoder: the other masks of an ambiguous prompt, and biases that leave a softmax over cells as it is.
IDLE = re.compile(r"mask_decoder\.(output_hypernetworks_mlps\.[123]\.|.*token_to_image\.k_proj\.bias)")
OWN = {"prompt_encoder.no_mask_embed.weight", *(f"prompt_encoder.point_embeddings.{i}.weight" for i in (2, 3))}
TOKEN = {f"prompt_encoder.added_token.{name}" for name in ("vector", "project.weight", "project.bias")}


@pytest.fixture(scope="module")
def data() -> SegmentationData:
    """Two generated sections with seven objects."""
    whole = load_data("synthetic-em", "val")
    labels = []
    for image, count in ((0, 4), (1, 3)):
        ids = whole.objects.object_id[whole.objects.image_index == image]
        middle = ids[len(ids) // 2 :][:count]
        labels.append(np.where(np.isin(whole.labels(image), middle), whole.labels(image), 0))
    images = [whole.image(0), whole.image(1)]
    return SegmentationData(whole.name, whole.split, whole.source, whole.image_ids[:2], images, labels)


@pytest.fixture
def make(data: SegmentationData) -> Make:
    def make(
        state: Path | None = None, checkpoint: str = "tiny_random", on: SegmentationData = data, **settings: Any
    ) -> Tuner:
        settings = {"steps": 6, "batch_size": 3, "learning_rate": 1e-3, **settings}
        return Tuner(checkpoint, on, TuningSettings(**settings), get_backend(checkpoint, "cpu"), state)

    return make


def run(tuner: Tuner, steps: int | None = None) -> list[float]:
    """Losses of the steps that are left, or of so many."""
    losses: list[float] = []

    class Enough(Exception):
        pass

    def note(tuner: Tuner, loss: float) -> None:
        losses.append(loss)
        if len(losses) == steps:
            raise Enough

    try:
        tuner.run(note)
    except Enough:
        pass
    return losses


def state_of(sam: Sam) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in sam.state_dict().items()}


# ------------------------------------------------------------------------------------------------------ what is trained


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_exactly_its_parameters(make: Make, method: str) -> None:
    tuner = make(method=method)
    before, shared = state_of(tuner.sam), state_of(tuner.backend.sam)
    run(tuner)
    after = tuner.sam.state_dict()
    changed = {name for name in before if not after[name].equal(before[name])}
    decoder = {name for name in before if name.startswith("mask_decoder.") and not IDLE.match(name)}
    assert changed == decoder | {"decoder": set(), "embeddings": OWN, "token": TOKEN}[method]
    assert before.keys() - load_sam("tiny_random").state_dict().keys() == (TOKEN if method == "token" else set())
    for name, tensor in tuner.backend.sam.state_dict().items():
        assert tensor.equal(shared[name]), "the shared backend's own model was trained"
    if method != "token":
        assert all(tensor.equal(load_sam("tiny_random").state_dict()[name]) for name, tensor in before.items())


def test_gradients_reach_the_whole_mask_head(make: Make) -> None:
    tuner = make()
    loss = tuner._loss()
    loss.backward()
    decoder = tuner.sam.mask_decoder
    for module in (decoder.output_upscaling, decoder.output_hypernetworks_mlps[0], decoder.iou_prediction_head):
        for name, parameter in module.named_parameters():
            assert parameter.grad.abs().max() > 0, name
    assert all(parameter.grad.abs().max() > 0 for parameter in tuner.sam.prompt_encoder.added_token.parameters())
    assert all(parameter.grad is None for parameter in tuner.sam.image_encoder.parameters())


def test_the_images_are_encoded_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    tuner = make(steps=8)
    backend = SamBackend("tiny_random", "cpu")
    tuner.backend = backend
    run(tuner)
    assert backend.encoder_calls == 2


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls(make: Make, method: str) -> None:
    losses = run(make(method=method, steps=60, batch_size=7, learning_rate=1e-2))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:5])


def test_it_computes_in_bfloat16_where_the_backend_does(make: Make) -> None:
    exact, fast = make(steps=30, batch_size=7, learning_rate=3e-3), make(steps=30, batch_size=7, learning_rate=3e-3)
    fast.backend = SamBackend("tiny_random", "cpu", "fast")
    losses, rounded = run(exact), run(fast)
    assert losses != rounded
    assert rounded == pytest.approx(losses, rel=0.1)
    assert all(parameter.dtype == torch.float32 for parameter in fast.sam.parameters())


def test_the_learning_rate_rises_and_falls(make: Make) -> None:
    tuner, rates = make(steps=40, warm_up=0.1), []
    tuner.run(lambda tuner, loss: rates.append(tuner._optimizer.param_groups[-1]["lr"] / 1e-3))
    np.testing.assert_allclose(rates[:4], [0.25, 0.5, 0.75, 1.0])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[22] == pytest.approx(0.5)  # half of the way down
    assert rates[-1] < 0.01


def test_tokens_and_embeddings_are_not_decayed(make: Make) -> None:
    for method in METHODS:
        decay = [group["weight_decay"] for group in make(method=method, weight_decay=0.3)._optimizer.param_groups]
        assert decay == [0.3] + [0.0] * (method != "decoder")


# -------------------------------------------------------------------------------------------------------- what is drawn


def draws(tuner: Tuner, steps: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    rows, boxes = [], []
    for tuner.steps_done in range(steps):
        some, their_boxes = tuner._draw(tuner.data)
        rows.extend(some)
        boxes.extend(their_boxes)
    return np.array(rows), np.array(boxes)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_every_object_comes_once_before_any_comes_again(make: Make, batch_size: int) -> None:
    rows = draws(make(batch_size=batch_size), 42)[0]
    epochs = rows[: len(rows) // 7 * 7].reshape(-1, 7)
    assert (np.sort(epochs, axis=1) == np.arange(7)).all()
    assert len(np.unique(epochs, axis=0)) > len(epochs) // 2  # in ever other orders


@pytest.mark.parametrize("size_error", ["isotropic", "sides"])
def test_errors_come_as_often_as_published(make: Make, data: SegmentationData, size_error: str) -> None:
    rows, boxes = draws(make(size_error=size_error, batch_size=10), 300)
    tight = data.objects.box[rows]
    extent = np.tile(tight[:, 2:] - tight[:, :2], 2)
    inner = ((tight - 0.1 * extent > 0) & (tight + 0.1 * extent < 256)).all(axis=1)  # not clipped at the border
    moved = (boxes - tight)[inner] / extent[inner]
    errors = 2 * np.abs(moved)
    np.testing.assert_allclose(errors, errors[:, :1].repeat(4, axis=1), atol=1e-4)
    counts = Counter(np.round(errors[:, 0].astype(np.float64), 3).tolist())
    assert inner.sum() > 1000
    assert set(counts) == {0.0, 0.1, 0.2}
    for error, share in ((0.0, 0.6), (0.1, 0.2), (0.2, 0.2)):
        assert counts[error] / inner.sum() == pytest.approx(share, abs=0.03)
    ways = len(np.unique(np.sign(moved[errors[:, 0] > 0.05]), axis=0))
    assert ways == (2 if size_error == "isotropic" else 16)
    larger = (np.sign(moved)[:, 2] > 0)[errors[:, 0] > 0.05]
    assert larger.mean() == pytest.approx(0.5, abs=0.06)


def test_boxes_may_be_as_wrong_as_those_of_episodes(make: Make, data: SegmentationData) -> None:
    rows, boxes = draws(make(size_error="cue", batch_size=10), 100)
    tight = data.objects.box[rows]
    moved = np.abs(boxes - tight) / np.tile(tight[:, 2:] - tight[:, :2], 2)
    assert 0.19 < moved.max() <= 0.2 + 1e-5
    assert moved.mean() == pytest.approx(0.1, abs=0.01)


def test_seeds_decide_what_is_drawn(make: Make) -> None:
    one, again, other = (draws(make(seed=seed), 5) for seed in (1, 1, 2))
    for i in range(2):
        np.testing.assert_array_equal(one[i], again[i])
        assert (one[i] != other[i]).any()
    tokens = [make(seed=seed).sam.prompt_encoder.added_token.vector.detach() for seed in (1, 1, 2)]
    assert tokens[0].equal(tokens[1])
    assert not tokens[0].equal(tokens[2])


def test_the_decoder_is_trained_on_what_a_backend_gives_it(make: Make, data: SegmentationData) -> None:
    """The same boxes in the model's frame, also where the image is not square, and the same embeddings."""
    oblong = SegmentationData(
        data.name, data.split, data.source, ["wide", "tall"],
        [data.image(0)[:101, :230], data.image(1)[:231, 60:197]],
        [data.labels(0)[:101, :230], data.labels(1)[:231, 60:197]],
        min_area=1,
    )  # fmt: skip
    tuner = make(on=oblong, batch_size=4)
    tuner.sam.prompt_encoder.added_token.requires_grad_(False)
    given: list[tuple] = []
    decoder = tuner._decoder
    tuner._decoder = lambda *a, **more: (given.append(a), decoder(*a, **more))[1]
    rows, boxes = tuner._draw(tuner.data)
    tuner._loss()
    backend = SamBackend("tiny_random", "cpu")
    embeddings = backend.encode([oblong.image(int(i)) for i in oblong.objects.image_index[rows]])
    assert len({embedding.image_size for embedding in embeddings}) == 2
    expected = backend._to_input_frame(embeddings, PromptBatch.from_lists(boxes=boxes))[1]
    features, points, _, in_frame, masks, has_mask = given[0]
    torch.testing.assert_close(in_frame, expected, rtol=0, atol=1e-4)
    assert all(one.equal(embedding.features) for one, embedding in zip(features, embeddings, strict=True))
    assert points.shape[1] == 0
    assert masks is None
    assert not has_mask.any()


# ------------------------------------------------------------------------------------------------------------- the loss


def test_the_loss_of_an_undecided_mask_by_hand() -> None:
    """Logits of 0 say one half everywhere: of 16 cells 8 are truth."""
    truth = torch.zeros(8, 8, dtype=torch.bool)
    truth[:, :4] = True
    loss = mask_loss(torch.zeros(4, 4), torch.tensor(0.3), truth, np.array([0, 0, 4, 8], np.float32), 0.5)
    assert float(loss) == pytest.approx((1 - 9 / 17) + math.log(2) + 0.5 * 0.3**2)


def test_a_right_mask_costs_nothing() -> None:
    truth = torch.zeros(8, 8, dtype=torch.bool)
    truth[2:6, 2:8] = True
    logits = torch.where(truth[::2, ::2], 40.0, -40.0)
    box = np.array([2, 2, 8, 6], np.float32)
    assert float(mask_loss(logits, torch.tensor(1.0), truth, box, 1.0)) == pytest.approx(0, abs=1e-6)
    assert float(mask_loss(-logits, torch.tensor(1.0), truth, box, 1.0)) > 30
    assert float(mask_loss(logits, torch.tensor(0.6), truth, box, 0.5)) == pytest.approx(0.5 * 0.4**2, abs=1e-6)


def test_cross_entropy_is_averaged_around_the_box() -> None:
    """Twice the box and two cells more; where a mask is sure of itself, nothing but cross-entropy has a gradient."""
    logits = torch.full((40, 40), 40.0, requires_grad=True)
    truth = torch.zeros(80, 80, dtype=torch.bool)
    truth[40, 40] = True  # a quarter of cell (20, 20)
    mask_loss(logits, torch.tensor(0.0), truth, np.array([20, 30, 44, 50], np.float32), 0.0).backward()
    expected = torch.zeros(40, 40)  # the box is 10..22 by 15..25 cells, and grows by 8 and by 7
    expected[8:32, 2:30] = 1
    expected[20, 20] = 1 - 0.25
    torch.testing.assert_close(logits.grad, expected / (24 * 28))


def test_the_window_ends_at_the_images_border() -> None:
    logits = torch.full((10, 10), 40.0, requires_grad=True)
    truth = torch.zeros(20, 20, dtype=torch.bool)
    mask_loss(logits, torch.tensor(0.0), truth, np.array([0, 0, 4, 20], np.float32), 0.0).backward()
    expected = torch.zeros(10, 10)
    expected[:, :5] = 1 / 50
    torch.testing.assert_close(logits.grad, expected)


def test_the_estimate_learns_the_iou_of_the_mask() -> None:
    """Five cells are mask, four truth, three both: 3/6. The mask itself learns nothing from it."""
    logits = torch.full((4, 4), -3.0)
    logits[0, :] = logits[1, 0] = 3.0
    logits.requires_grad_(True)
    truth = torch.zeros(4, 4, dtype=torch.bool)
    truth[0, :3] = truth[3, 3] = True
    quality = torch.tensor(0.8, requires_grad=True)
    box = np.array([0, 0, 4, 4], np.float32)
    mask_loss(logits, quality, truth, box, 0.25).backward()
    assert float(quality.grad) == pytest.approx(2 * 0.25 * (0.8 - 0.5))
    with_estimate, logits.grad = logits.grad, None
    mask_loss(logits, quality, truth, box, 0.0).backward()
    assert with_estimate.equal(logits.grad)


def test_the_dice_term_by_hand() -> None:
    logits = torch.tensor([[math.log(3.0), -math.log(3.0)], [0.0, math.log(9.0)]])  # .75 .25 .5 .9
    truth = torch.tensor([[True, False], [True, True]])
    entropy = -(math.log(0.75) + math.log(0.75) + math.log(0.5) + math.log(0.9)) / 4
    dice = 1 - (2 * (0.75 + 0.5 + 0.9) + 1) / ((0.75 + 0.25 + 0.5 + 0.9) + 3 + 1)
    loss = mask_loss(logits, torch.tensor(0.0), truth, np.array([0, 0, 2, 2], np.float32), 0.0)
    assert float(loss) == pytest.approx(dice + entropy)


# ------------------------------------------------------------------------------------------------ stored, saved, used


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("at", [1, 5])
def test_interrupted_and_resumed_equals_uninterrupted(make: Make, tmp_path: Path, method: str, at: int) -> None:
    whole = make(method=method)
    expected = run(whole)
    first = make(tmp_path / "state", method=method)
    losses = run(first, at)
    first.store()
    second = make(tmp_path / "state", method=method)
    assert second.steps_done == at
    losses += run(second)
    assert losses == expected
    for name, tensor in whole.sam.state_dict().items():
        assert tensor.equal(second.sam.state_dict()[name]), name


def test_a_state_of_other_settings_is_refused(make: Make, tmp_path: Path) -> None:
    tuner = make(tmp_path / "state")
    run(tuner, 1)
    tuner.store()
    for change in ({"seed": 1}, {"method": "decoder"}, {"steps": 7}, {"size_error": "sides"}):
        with pytest.raises(ValueError, match="was stored with other settings: .*'method': 'token'"):
            make(tmp_path / "state", **change)


def test_a_state_of_other_weights_or_objects_is_refused(make: Make, data: SegmentationData, tmp_path: Path) -> None:
    tuner = make(tmp_path / "state")
    run(tuner, 1)
    tuner.store()
    other = load_sam("tiny_random")
    with torch.no_grad():
        other.mask_decoder.iou_token.weight.add_(1)
    save_decoder(other, tmp_path / "other.safetensors", "tiny_random")
    with pytest.raises(ValueError, match="other settings"):
        make(tmp_path / "state", checkpoint=str(tmp_path / "other.safetensors"))
    one_image = SegmentationData(
        data.name, data.split, data.source, data.image_ids[:1], [data.image(0)], [data.labels(0)]
    )
    with pytest.raises(ValueError, match="other settings"):
        make(tmp_path / "state", on=one_image)


def test_without_a_file_nothing_is_stored(make: Make) -> None:
    with pytest.raises(ValueError, match="without a file"):
        make().store()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "prompt"}, "'prompt' is unknown; choose from decoder, embeddings, token"),
        ({"steps": 0}, "steps=0"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TuningSettings(**settings)


def test_tuning_leaves_the_random_state_alone(make: Make) -> None:
    before = torch.random.get_rng_state()
    run(make(), 2)
    assert torch.random.get_rng_state().equal(before)


@pytest.mark.parametrize("method", METHODS)
def test_a_tuned_decoder_is_a_checkpoint_of_environments(make: Make, tmp_path: Path, method: str) -> None:
    tuner = make(method=method, steps=10, learning_rate=3e-3)
    run(tuner)
    path = tmp_path / "tuned.safetensors"
    tuner.save(path)
    loaded = load_sam(path).state_dict()
    assert loaded.keys() == tuner.sam.state_dict().keys()
    assert all(loaded[name].equal(tensor) for name, tensor in tuner.sam.state_dict().items())
    assert checkpoint_id(path).startswith("tuned-")
    made = {"split": "val", "device": "cpu", "box_error": 0.2}
    plain, tuned = (
        gymnasium.make("SamBoxRefine-Synthetic-v0", checkpoint=checkpoint, **made).unwrapped
        for checkpoint in ("tiny_random", str(path))
    )
    before, after = plain.reset(seed=0)[0], tuned.reset(seed=0)[0]
    assert (before["maps"][3] != after["maps"][3]).any()
    np.testing.assert_array_equal(before["maps"][:3], after["maps"][:3])
    np.testing.assert_array_equal(before["embedding"], after["embedding"])
    direct = SamBackend("tiny_random", "cpu")
    direct.sam, direct._decoder = tuner.sam, tuning.BatchedDecoder(tuner.sam)
    embedding = direct.encode([tuned.engine.data.image(int(tuned.engine.episodes.image[0]))])
    masks = direct.decode(embedding, PromptBatch.from_lists(boxes=[tuned.engine.episodes.cue[0]]))
    assert masks.logits[:, 0].equal(torch.stack(tuned.engine._logits))


def test_a_tuned_token_may_be_tuned_further(make: Make, tmp_path: Path) -> None:
    first = make()
    run(first)
    first.save(tmp_path / "first.safetensors")
    second = make(checkpoint=str(tmp_path / "first.safetensors"))
    token = second.sam.prompt_encoder.added_token
    assert token.vector.equal(first.sam.prompt_encoder.added_token.vector)
    before = token.vector.detach().clone()
    run(second)
    assert not token.vector.equal(before)
    kept = make(checkpoint=str(tmp_path / "first.safetensors"), method="decoder")
    run(kept)
    assert kept.sam.prompt_encoder.added_token.vector.equal(before)  # there, but not trained
