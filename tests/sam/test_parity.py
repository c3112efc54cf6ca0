"""SamBackend against segment_anything's own SamPredictor, on real sections and real weights (and on the tiny SAM)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor

from sam_gym.data import load_data
from sam_gym.sam import Masks, PromptBatch, SamBackend, load_sam

TOLERANCE = {"tiny_random": 1e-6, "mobile_sam": 1e-4}
"""Largest absolute difference of logits; they are of magnitude 0.3 and 30."""

CROPS = {
    "square": np.s_[:, :],
    "wide": np.s_[100:400, :],
    "tall": np.s_[:, 37:337],
}


@dataclass
class Prompt:
    """One mask's prompts as SamPredictor takes them, pixels of the original image."""

    points: NDArray | None = None
    labels: NDArray | None = None
    box: NDArray | None = None
    mask: NDArray | None = None


@dataclass
class Case:
    """A backend, the predictor to compare with, and the image that both look at."""

    checkpoint: str
    backend: SamBackend
    predictor: SamPredictor
    image: NDArray[np.uint8]


@cache
def models(checkpoint: str) -> tuple[SamBackend, SamPredictor]:
    return SamBackend(checkpoint, "cpu"), SamPredictor(load_sam(checkpoint))


@pytest.fixture(
    scope="module",
    params=[
        "tiny_random square",
        "tiny_random wide",
        "tiny_random tall",
        pytest.param("mobile_sam square", marks=pytest.mark.weights),
        pytest.param("mobile_sam wide", marks=pytest.mark.weights),
    ],
)
def case(request: pytest.FixtureRequest, real_folder: object) -> Case:
    checkpoint, crop = request.param.split()
    backend, predictor = models(checkpoint)
    image = load_data("isbi2012", "val", "real").image(0)[CROPS[crop]]
    predictor.set_image(image)
    return Case(checkpoint, backend, predictor, image)


def prompts(image: NDArray[np.uint8], backend: SamBackend) -> dict[str, Prompt]:
    """Prompts of every kind, fixed by a seed."""
    height, width = image.shape[:2]
    rng = np.random.default_rng(7)
    points = rng.uniform(0, (width - 1, height - 1), (6, 2)).astype(np.float32)
    labels = np.array([1, 0, 1, 1, 0, 0])
    box = np.array([0.31 * width, 0.25 * height, 0.63 * width, 0.7 * height], np.float32)
    smooth = torch.as_tensor(rng.normal(0, 12, (1, 1, 8, 8)), dtype=torch.float32)
    mask = torch.nn.functional.interpolate(smooth, backend.mask_size, mode="bicubic")[0, 0].numpy()
    return {
        "one point": Prompt(points[:1], labels[:1]),
        "six points": Prompt(points, labels),
        "background only": Prompt(points[1:2], labels[1:2]),
        "box": Prompt(box=box),
        "box and points": Prompt(points[:3], labels[:3], box),
        "box and mask": Prompt(box=box, mask=mask),
        "points and mask": Prompt(points[:2], labels[:2], mask=mask),
        "everything": Prompt(points, labels, box, mask),
        "mask": Prompt(mask=mask),
        "nothing": Prompt(),
    }


def official(predictor: SamPredictor, prompt: Prompt, multimask: bool) -> tuple[NDArray, NDArray, NDArray]:
    """Full-size logits, predicted IoU and low-resolution logits by SamPredictor."""
    return predictor.predict(
        point_coords=prompt.points,
        point_labels=prompt.labels,
        box=prompt.box,
        mask_input=None if prompt.mask is None else prompt.mask[None],
        multimask_output=multimask,
        return_logits=True,
    )


def batched(backend: SamBackend, image: NDArray[np.uint8], many: list[Prompt], multimask: bool) -> Masks:
    batch = PromptBatch.from_lists(
        points=[p.points for p in many],
        labels=[p.labels for p in many],
        boxes=[p.box for p in many],
        mask_logits=[None if p.mask is None else torch.as_tensor(p.mask) for p in many],
    )
    return backend.decode(backend.encode([image]) * len(many), batch, multimask=multimask)


def test_encoder(case: Case) -> None:
    embedding = case.backend.encode([case.image])[0]
    assert embedding.image_size == case.image.shape[:2]
    assert embedding.input_size == tuple(case.predictor.input_size)
    torch.testing.assert_close(embedding.features, case.predictor.features[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("multimask", [False, True])
def test_decoder(case: Case, multimask: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten prompts of mixed kinds and lengths in one call, each as if SamPredictor had been given it alone."""
    backend, tolerance = case.backend, TOLERANCE[case.checkpoint]
    named = prompts(case.image, backend)
    expected = {
        name: [torch.as_tensor(a) for a in official(case.predictor, prompt, multimask)]
        for name, prompt in named.items()
    }
    embedding = backend.encode([case.image])[0]
    for micro_batch in (8,) if multimask else (1, 8):
        monkeypatch.setattr(backend, "micro_batch", micro_batch)
        got = batched(backend, case.image, list(named.values()), multimask)
        flipped = pixels = 0
        for i, (name, (full, quality, low)) in enumerate(expected.items()):
            mine = backend.upscale(got.logits[i], embedding)
            for ours, theirs in ((got.logits[i], low), (mine, full), (got.predicted_iou[i], quality)):
                torch.testing.assert_close(
                    ours,
                    theirs,
                    rtol=0,
                    atol=tolerance,
                    msg=lambda m, case=(name, micro_batch): f"{case}: {m}",
                )
            flipped += int(((mine > 0) != (full > 0)).sum())
            pixels += full.numel()
        assert flipped <= 2e-6 * pixels, f"{flipped} of {pixels} pixels are in one mask and not in the other"


@pytest.mark.parametrize("multimask", [False, True])
def test_the_official_decoder_is_the_reference(case: Case, multimask: bool) -> None:
    """precision="official" gives SamPredictor's logits, and ours agree with them to 1e-5 of their magnitude."""
    reference = SamBackend(case.checkpoint, "cpu", "official")
    named = prompts(case.image, case.backend)
    theirs = batched(reference, case.image, list(named.values()), multimask)
    ours = batched(case.backend, case.image, list(named.values()), multimask)
    for i, prompt in enumerate(named.values()):
        expected = torch.as_tensor(official(case.predictor, prompt, multimask)[2])
        torch.testing.assert_close(
            theirs.logits[i], expected, rtol=0, atol=TOLERANCE[case.checkpoint] / 5
        )  # of another number of threads
        relative = (ours.logits[i] - theirs.logits[i]).abs().max() / theirs.logits[i].abs().max()
        assert relative < 1e-5, f"{list(named)[i]}: {relative}"


def test_threads_do_not_matter(case: Case) -> None:
    """All threads decode parts of a lone mask, and one thread each mask in company; not a bit may depend on it."""
    many = list(prompts(case.image, case.backend).values())[1:7:2]
    alone = [batched(case.backend, case.image, [prompt], False).logits[0] for prompt in many]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        alone_by_two = [batched(case.backend, case.image, [prompt], False).logits[0] for prompt in many]
        together = batched(case.backend, case.image, many, False).logits
    finally:
        torch.set_num_threads(before)
    for one, two, company in zip(alone, alone_by_two, together, strict=True):
        assert torch.equal(one, company)
        assert torch.equal(one, two)


@pytest.mark.weights
def test_fast_masks_are_nearly_the_exact_ones(real_folder: object) -> None:
    """bfloat16 against float32 on the real model, by the boxes of real cells: IoU of the masks at full size."""
    data = load_data("isbi2012", "val", "real")
    exact, _ = models("mobile_sam")
    fast = SamBackend("mobile_sam", "cpu", "fast")
    embedding = exact.encode([data.image(0)])[0]
    rows = np.flatnonzero(data.objects.image_index == 0)[::12]
    batch = PromptBatch.from_lists(boxes=list(data.objects.box[rows]))
    overlaps = []
    masks = [b.upscale(b.decode([embedding] * len(rows), batch).logits[:, 0], embedding) > 0 for b in (exact, fast)]
    for a, b in zip(*masks, strict=True):
        overlaps.append(float((a & b).sum() / (a | b).sum()))
    assert len(overlaps) >= 5
    assert np.mean(overlaps) > 0.98
    assert min(overlaps) > 0.9
