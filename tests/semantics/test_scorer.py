"""Region-text scores: what they are made of, that regions do not mix, and documented answers to bad input."""

from __future__ import annotations

from collections.abc import Callable
from time import process_time

import numpy as np
import pytest
import torch

from sam_gym.sam import PromptBatch, get_backend
from sam_gym.semantics import ClipModel, RegionScorer
from sam_gym.semantics.models import untrained_micro
from sam_gym.semantics.views import VIEWS, region_views

BuildClip = Callable[..., ClipModel]

TARGETS = ["mitochondrion", "nucleus", "mitochondrion", "membrane", "nucleus"]
OTHERS = [("membrane", "cell interior"), ("background",), ["membrane"], ("nucleus", "background"), ("cytoplasm",)]


@pytest.mark.parametrize("view", VIEWS)
def test_score_is_the_softmax_of_scaled_cosines(clip: ClipModel, regions, view: str) -> None:
    images, masks = regions
    scores = RegionScorer(clip, view).score(images, masks, TARGETS, OTHERS)
    assert (scores.dtype, scores.shape) == (np.float64, (5,))
    with torch.no_grad():
        pixels = region_views(images, masks, clip, view)
        for index in range(5):
            tokens = clip.tokenizer([TARGETS[index], *OTHERS[index]])
            logits, _ = clip.model.get_logits(pixels[index : index + 1], tokens)
            assert scores[index] == pytest.approx(float(logits.softmax(-1)[0, 0]), abs=1e-5)
    assert len(set(scores)) == 5


def test_scores_do_not_depend_on_their_neighbours(clip: ClipModel, regions) -> None:
    images, masks = regions
    scorer = RegionScorer(clip)
    together = scorer.score(images, masks, TARGETS, OTHERS)
    alone = [scorer.score([images[i]], [masks[i]], [TARGETS[i]], [OTHERS[i]])[0] for i in range(5)]
    assert np.allclose(alone, together, atol=1e-6, rtol=0)


def test_empty_mask_scores_zero(clip: ClipModel, regions, monkeypatch: pytest.MonkeyPatch) -> None:
    images, masks = regions
    scorer = RegionScorer(clip)
    whole = scorer.score(images, masks, TARGETS, OTHERS)
    masks[1], masks[3] = np.zeros_like(masks[1]), np.zeros_like(masks[3])
    scores = scorer.score(images, masks, TARGETS, OTHERS)
    assert scores[[1, 3]].tolist() == [0, 0]
    assert np.allclose(scores[[0, 2, 4]], whole[[0, 2, 4]], atol=1e-6, rtol=0)
    monkeypatch.setattr(ClipModel, "embed_images", lambda *_: pytest.fail("there is nothing to look at"))
    empty = [np.zeros_like(mask) for mask in masks]
    assert scorer.score(images, empty, TARGETS, OTHERS).tolist() == [0.0] * 5


def test_probabilities_of_all_texts_sum_to_one(clip: ClipModel, regions) -> None:
    images, masks = regions
    texts = ["mitochondrion", "membrane", "cell interior"]
    others = [[text for text in texts if text != target] for target in texts]
    scores = RegionScorer(clip).score([images[0]] * 3, [masks[0]] * 3, texts, others)
    assert scores.sum() == pytest.approx(1)


def test_texts_are_embedded_once(build_clip: BuildClip, regions) -> None:
    clip, seen = build_clip(), []
    tokenizer = clip.tokenizer
    object.__setattr__(clip, "tokenizer", lambda texts: seen.extend(texts) or tokenizer(texts))
    scorer = RegionScorer(clip)
    for _ in range(2):
        scorer.score(*regions, TARGETS, OTHERS)
    assert sorted(seen) == sorted({*TARGETS, *(text for others in OTHERS for text in others)})
    assert scorer.embed_texts(["nucleus"]).shape == (1, scorer.text_dim)


@pytest.mark.weights
def test_scoring_costs_less_than_decoding() -> None:
    """16 masks of 16 images of 512 px: SAM's decoder in its quickest form here against clip-micro."""
    images = list(np.random.default_rng(0).integers(0, 256, (16, 512, 512, 3), dtype=np.uint8))
    masks = list(np.zeros((16, 512, 512), bool))
    for mask in masks:
        mask[100:300, 150:400] = True
    micro = untrained_micro()
    micro.model.eval()
    scorer, backend = RegionScorer(micro), get_backend(device="cpu", precision="auto")
    embeddings, boxes = backend.encode(images[:1]) * 16, PromptBatch.from_lists(boxes=[(150, 100, 400, 300)] * 16)

    def seconds(work: Callable[[], object]) -> float:
        start = process_time()
        work()
        return process_time() - start

    decoding = seconds(lambda: backend.decode(embeddings, boxes))
    scoring = seconds(lambda: scorer.score(images, masks, ["nucleus"] * 16, [("membrane", "background")] * 16))
    assert scoring < decoding / 2


def test_unknown_view_is_refused(clip: ClipModel) -> None:
    with pytest.raises(ValueError, match="did you mean 'blurred'"):
        RegionScorer(clip, "blured")


def test_bad_input_is_named(clip: ClipModel, regions) -> None:
    images, masks = regions
    scorer = RegionScorer(clip)
    for wrong, said in [
        ((images, masks, TARGETS[:-1], OTHERS), "5 images, 4 targets"),
        ((images, masks, ["", *TARGETS[1:]], OTHERS), "a text is empty"),
        ((images, masks, TARGETS, [("",), *OTHERS[1:]]), "a text is empty"),
        ((images, masks, TARGETS, [(), *OTHERS[1:]]), "needs a sequence of distractors"),
        ((images, masks, TARGETS, ["membrane", *OTHERS[1:]]), "needs a sequence of distractors"),
        ((images, masks, TARGETS, [("mitochondrion",), *OTHERS[1:]]), "among its own distractors"),
        ((images, masks[::-1], TARGETS, OTHERS), "mask 0 must be bool"),
        (([], [], [], []), "at least one image"),
    ]:
        with pytest.raises(ValueError, match=said):
            scorer.score(*wrong)
