"""SamBackend on a SAM of random weights: the company a prompt keeps never matters, and images are encoded once."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sam_gym.sam import ImageEmbedding, Masks, PromptBatch, SamBackend, cache, get_backend
from sam_gym.sam.cache import EmbeddingCache, content_key

SIZES = ((64, 96), (100, 40), (256, 256), (30, 300), (17, 17))

Row = tuple[int, list, tuple | None, bool]


def picture(size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def fresh(**arguments: Any) -> SamBackend:
    return SamBackend("tiny_random", "cpu", **arguments)


@pytest.fixture(scope="module")
def backends() -> dict[int, SamBackend]:
    """Backends that decode 1, 4 and 16 masks together."""
    return {size: fresh(micro_batch=size) for size in (1, 4, 16)}


@pytest.fixture(scope="module")
def images(backends: dict[int, SamBackend]) -> list[ImageEmbedding]:
    return backends[1].encode([picture(size, seed) for seed, size in enumerate(SIZES)])


def mask_prompt(seed: int) -> torch.Tensor:
    return torch.as_tensor(np.random.default_rng(seed).normal(0, 8, (64, 64)), dtype=torch.float32)


def decode(backend: SamBackend, images: list[ImageEmbedding], rows: list[Row], **arguments: Any) -> Masks:
    batch = PromptBatch.from_lists(
        points=[[xy for xy, _ in clicks] for _, clicks, _, _ in rows],
        labels=[[label for _, label in clicks] for _, clicks, _, _ in rows],
        boxes=[box for _, _, box, _ in rows],
        mask_logits=[mask_prompt(image + len(clicks)) if masked else None for image, clicks, _, masked in rows],
    )
    return backend.decode([images[row[0]] for row in rows], batch, **arguments)


@st.composite
def prompt_row(draw: st.DrawFn) -> Row:
    """A prompt of any kind, none at all included, on one of the images."""
    image = draw(st.integers(0, len(SIZES) - 1))
    height, width = SIZES[image]
    xy = st.tuples(st.floats(0, width - 1), st.floats(0, height - 1))
    clicks = draw(st.lists(st.tuples(xy, st.integers(0, 1)), max_size=5))
    corners = draw(st.none() | st.tuples(xy, xy))
    box = None
    if corners:
        (ax, ay), (bx, by) = corners
        box = (min(ax, bx), min(ay, by), max(ax, bx), max(ay, by))
    return image, clicks, box, draw(st.booleans())


CLICK, OTHER = ((20.0, 10.0), 1), ((5.0, 30.0), 0)
EVERY_KIND: list[Row] = [
    (0, [CLICK], None, False),
    (1, [], (2.0, 3.0, 30.0, 90.0), True),
    (2, [], None, False),
    (3, [CLICK, OTHER, CLICK, OTHER], None, True),
    (0, [OTHER], (4.0, 4.0, 40.0, 40.0), False),
    (4, [], None, True),
]


@pytest.mark.parametrize("micro_batch", [1, 4, 16])
@settings(max_examples=20)
@given(rows=st.lists(prompt_row(), min_size=1, max_size=9), multimask=st.booleans())
@example(rows=EVERY_KIND, multimask=False)
@example(rows=EVERY_KIND[::-1], multimask=True)
def test_company_does_not_matter(
    backends: dict[int, SamBackend],
    images: list[ImageEmbedding],
    micro_batch: int,
    rows: list[Row],
    multimask: bool,
) -> None:
    """A row decoded with others equals the row alone, whatever the others are and wherever it stands."""
    together = decode(backends[micro_batch], images, rows, multimask=multimask)
    kinds = 3 if multimask else 1
    assert together.logits.shape == (len(rows), kinds, 64, 64)
    assert together.predicted_iou.shape == (len(rows), kinds)
    for i, row in enumerate(rows):
        alone = decode(backends[1], images, [row], multimask=multimask)
        if micro_batch == 1:
            assert torch.equal(together.logits[i], alone.logits[0])
            assert torch.equal(together.predicted_iou[i], alone.predicted_iou[0])
        else:
            torch.testing.assert_close(together.logits[i], alone.logits[0], rtol=0, atol=2e-6)
            torch.testing.assert_close(together.predicted_iou[i], alone.predicted_iou[0], rtol=0, atol=2e-6)


def test_each_part_of_a_prompt_counts(backends: dict[int, SamBackend], images: list[ImageEmbedding]) -> None:
    """So that the tolerance above means something: what a prompt holds moves the logits far more than that."""
    click, box = [CLICK], (2.0, 3.0, 60.0, 50.0)
    rows: list[Row] = [
        (0, [], None, False),
        (0, click, None, False),
        (0, [(CLICK[0], 0)], None, False),
        (0, click * 2, None, False),
        (0, [], box, False),
        (0, click, box, False),
        (0, click, box, True),
        (1, click, box, True),
    ]
    logits = decode(backends[1], images, rows).logits
    for i in range(len(rows)):
        for j in range(i):
            assert (logits[i] - logits[j]).abs().max() > 1e-3, (rows[i], rows[j])


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_padding_is_never_looked_at(
    backends: dict[int, SamBackend], images: list[ImageEmbedding], micro_batch: int
) -> None:
    """NaN where there is no point, and in the mask prompts of those who have none, reaches nobody."""
    batch = PromptBatch.from_lists(
        points=[[CLICK[0]], [CLICK[0], OTHER[0], CLICK[0]], []],
        labels=[[1], [1, 0, 1], []],
        mask_logits=[None, mask_prompt(1), None],
    )
    points, mask_logits = batch.points.copy(), batch.mask_logits.clone()
    points[batch.labels == -1] = np.nan
    mask_logits[~torch.as_tensor(batch.has_mask)] = torch.nan
    poisoned = PromptBatch(points, batch.labels, batch.boxes, mask_logits, batch.has_mask)
    backend = backends[micro_batch]
    clean, other = (backend.decode(images[:3], prompts) for prompts in (batch, poisoned))
    assert torch.equal(clean.logits, other.logits)
    assert torch.equal(clean.predicted_iou, other.predicted_iou)


def test_order_does_not_matter(backends: dict[int, SamBackend], images: list[ImageEmbedding]) -> None:
    order = [3, 0, 5, 1, 4, 2]
    straight = decode(backends[1], images, EVERY_KIND)
    shuffled = decode(backends[1], images, [EVERY_KIND[i] for i in order])
    assert torch.equal(shuffled.logits, straight.logits[order])


def test_a_decode_changes_nothing(backends: dict[int, SamBackend], images: list[ImageEmbedding]) -> None:
    before = [image.features.clone() for image in images]
    threads = torch.get_num_threads()
    first = decode(backends[1], images, EVERY_KIND)
    kept = first.logits.clone()
    second = decode(backends[1], images, EVERY_KIND)
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.logits, kept)
    assert not first.logits.requires_grad
    assert all(torch.equal(image.features, old) for image, old in zip(images, before, strict=True))
    assert torch.get_num_threads() == threads


def test_sizes_of_images_are_kept(images: list[ImageEmbedding]) -> None:
    assert [image.image_size for image in images] == list(SIZES)
    assert [image.input_size for image in images] == [(171, 256), (256, 102), (256, 256), (26, 256), (256, 256)]
    assert all(image.features.shape == (32, 16, 16) for image in images)


def test_keys_follow_the_pixels() -> None:
    """A read-only array's key is remembered as long as the array lives, a writable one's never."""
    image = picture((8, 9))
    before = content_key(image)
    image[0, 0, 0] ^= 1
    assert content_key(image) != before
    image[0, 0, 0] ^= 1
    image.setflags(write=False)
    assert content_key(image) == before == content_key(image)
    assert id(image) in cache._known
    part = picture((9, 9))[:8]
    part.setflags(write=False)  # a view: somebody else may write to it
    content_key(part)
    assert id(part) not in cache._known
    number = id(image)
    del image
    assert number not in cache._known


def test_full_size_masks(backends: dict[int, SamBackend], images: list[ImageEmbedding]) -> None:
    logits = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    backend = backends[1]
    for image in images:
        full = backend.upscale(logits, image)
        assert full.shape == (2, 3, *image.image_size)
        expected = backend.sam.postprocess_masks(logits.flatten(0, 1)[None], image.input_size, image.image_size)
        torch.testing.assert_close(full.flatten(0, 1), expected[0], rtol=0, atol=2e-6)
        assert torch.equal(backend.upscale(logits[1, 2], image), full[1, 2])


@pytest.mark.parametrize("micro_batch", [1, 4, 16])
@pytest.mark.parametrize("multimask", [False, True])
def test_statistics_are_those_of_the_masks_at_full_size(
    backends: dict[int, SamBackend], images: list[ImageEmbedding], micro_batch: int, multimask: bool
) -> None:
    """However many masks are decoded together, of images of whatever sizes."""
    handles = [images[row[0]] for row in EVERY_KIND]
    rng = np.random.default_rng(0)
    truths = [torch.as_tensor(rng.random(handle.image_size) < 0.4) for handle in handles]
    backend = backends[micro_batch]
    calls = backend.decoder_calls
    plain = decode(backend, images, EVERY_KIND, multimask=multimask)
    assert plain.statistics is None
    assert plain.full is None
    got = decode(backend, images, EVERY_KIND, multimask=multimask, statistics=True, truths=truths, full=True)
    assert backend.decoder_calls == calls + 2
    assert torch.equal(got.logits, plain.logits)
    assert got.statistics is not None
    assert got.full is not None
    for i, (handle, truth, masks) in enumerate(zip(handles, truths, got.full, strict=True)):
        assert torch.equal(masks, backend.upscale(got.logits[i], handle) > 0)
        for k, mask in enumerate(masks):
            assert got.statistics.area[i, k] == mask.sum()
            assert got.statistics.box[i, k].tolist() == extent(mask)
            union, shared = int((mask | truth).sum()), int((mask & truth).sum())
            assert got.statistics.iou[i, k] == shared / union
            assert got.statistics.dice[i, k] == 2 * shared / int(mask.sum() + truth.sum())
    boxes = decode(backend, images, EVERY_KIND, multimask=multimask, statistics=True).statistics
    overlaps = decode(backend, images, EVERY_KIND, multimask=multimask, truths=truths).statistics
    assert boxes is not None
    assert overlaps is not None
    assert torch.equal(boxes.box, got.statistics.box)
    assert torch.equal(overlaps.iou, got.statistics.iou)
    assert overlaps.box is None
    with pytest.raises(ValueError, match=r"pass truths="):
        _ = boxes.iou


def extent(mask: torch.Tensor) -> list[int]:
    y, x = mask.nonzero(as_tuple=True)
    return [int(v) for v in (x.min(), y.min(), x.max() + 1, y.max() + 1)] if len(x) else [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("truths", "message"),
    [
        ([], "0 truths for 1 masks"),
        ([torch.zeros(64, 96)], r"truth 0 is torch.float32 of shape \(64, 96\); expected torch.bool"),
        (
            [torch.zeros(96, 64, dtype=torch.bool)],
            r"shape \(96, 64\); expected torch.bool of its image's shape \(64, 96\)",
        ),
    ],
)
def test_truths_must_fit(
    backends: dict[int, SamBackend], images: list[ImageEmbedding], truths: list[torch.Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        decode(backends[1], images, EVERY_KIND[:1], truths=truths)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8), np.uint8), r"image 1 has shape \(8, 8\)"),
        (np.zeros((8, 8, 4), np.uint8), r"image 1 has shape \(8, 8, 4\)"),
        (np.zeros((3, 8, 8), np.uint8), r"image 1 has shape \(3, 8, 8\)"),
        (np.zeros((0, 8, 3), np.uint8), r"image 1 has shape \(0, 8, 3\)"),
        (np.full((8, 8, 3), np.nan, np.float32), "dtype float32"),
        (np.zeros((8, 8, 3), np.uint16), "dtype uint16"),
        (None, "dtype object"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fresh().encode([picture((8, 8)), image])


def test_numbers_of_images_and_prompts_must_agree(
    backends: dict[int, SamBackend], images: list[ImageEmbedding]
) -> None:
    one = PromptBatch.from_lists(boxes=[(0, 0, 5, 5)])
    with pytest.raises(ValueError, match="2 embeddings for 1 prompts"):
        backends[1].decode(images[:2], one)
    with pytest.raises(ValueError, match="0 embeddings for 0 prompts"):
        backends[1].decode([], PromptBatch.from_lists(boxes=[]))


def test_mask_prompts_must_have_the_size_of_masks(
    backends: dict[int, SamBackend], images: list[ImageEmbedding]
) -> None:
    wrong = PromptBatch.from_lists(mask_logits=[torch.zeros(32, 32)])
    with pytest.raises(ValueError, match=r"\(32, 32\).*\(64, 64\)"):
        backends[1].decode(images[:1], wrong)


# ------------------------------------------------------------------------------------------------------- the cache


def test_equal_pixels_are_encoded_once() -> None:
    backend = fresh()
    a, b = picture((20, 30), 1), picture((20, 30), 2)
    first, again, other = backend.encode([a, a.copy(), b])
    assert backend.encoder_calls == 2
    assert first.key == again.key != other.key
    assert first.features is again.features
    sliced = np.concatenate([b, a], axis=1)[:, 30:]  # the same pixels, not contiguous
    assert backend.encode([sliced])[0].features is first.features
    assert backend.encoder_calls == 2
    assert backend.decoder_calls == 0


def test_equal_bytes_in_another_shape_are_another_image() -> None:
    flat = picture((20, 30), 1)
    assert content_key(flat) != content_key(flat.reshape(30, 20, 3))


def test_cache_forgets_the_least_recently_used() -> None:
    a, b, c = (picture((16, 16), seed) for seed in range(3))
    one = fresh().encode([a])[0].features.nbytes
    backend = fresh(cache_bytes=2 * one)
    calls = []
    for image in (a, b, a, c, a, b, c):  # c drops b; b drops c; c drops a
        backend.encode([image])
        calls.append(backend.encoder_calls)
    assert calls == [1, 2, 2, 3, 3, 4, 5]


def test_handles_outlive_the_cache() -> None:
    backend = fresh(cache_bytes=1)
    images = backend.encode([picture((16, 16), seed) for seed in range(3)])
    assert backend.encoder_calls == 3
    assert decode(backend, images, [(i, [CLICK], None, False) for i in range(3)]).logits.isfinite().all()
    assert backend.encoder_calls == 3


@given(
    budget=st.integers(1, 40),
    operations=st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 6) | st.none()), max_size=40),
)
def test_cache_against_a_model(budget: int, operations: list[tuple[str, int | None]]) -> None:
    """Puts (a number of floats) and gets (None) in any order, against the obvious implementation."""
    cache = EmbeddingCache(budget)
    model: OrderedDict[str, torch.Tensor] = OrderedDict()
    for key, length in operations:
        if length is None:
            if key in model:
                model.move_to_end(key)
            assert cache.get(key) is model.get(key)
        else:
            value = torch.zeros(length)
            model.pop(key, None)
            model[key] = value
            cache.put(key, value)
            while sum(v.nbytes for v in model.values()) > budget and len(model) > 1:
                model.popitem(last=False)
        assert len(cache) == len(model)
    assert all(cache.get(key) is value for key, value in list(model.items()))


@pytest.mark.parametrize("budget", [0, -1])
def test_cache_needs_room(budget: int) -> None:
    with pytest.raises(ValueError, match=f"max_bytes must be positive, got {budget}"):
        EmbeddingCache(budget)


# ------------------------------------------------------------------------------------------ one backend per process


def test_backend_is_shared_and_pickles_as_a_name() -> None:
    shared = get_backend("tiny_random", "cpu")
    assert get_backend("tiny_random", "cpu") is shared
    sent = pickle.dumps(shared)
    assert len(sent) < 1000
    assert pickle.loads(sent) is shared


def test_pickling_keeps_settings() -> None:
    backend = fresh(micro_batch=3, cache_bytes=12345)
    copy = pickle.loads(pickle.dumps(backend))
    assert (copy.micro_batch, copy.checkpoint, copy.device) == (3, "tiny_random", torch.device("cpu"))
    image = picture((16, 16))
    assert torch.equal(copy.encode([image])[0].features, backend.encode([image])[0].features)
    assert get_backend("tiny_random", "cpu").micro_batch == 1


def test_fast_precision_is_nearly_exact(backends: dict[int, SamBackend], images: list[ImageEmbedding]) -> None:
    """bfloat16 has 8 bits: logits move by about 1 % of their size, and results stay float32."""
    fast = fresh(precision="fast")
    exact, rough = (decode(backend, images, EVERY_KIND) for backend in (backends[1], fast))
    assert rough.logits.dtype == rough.predicted_iou.dtype == torch.float32
    difference = (rough.logits - exact.logits).abs()
    assert 0 < difference.mean() < 0.03 * exact.logits.std()
    torch.testing.assert_close(rough.predicted_iou, exact.predicted_iou, rtol=0, atol=0.01)
    assert all(parameter.dtype == torch.float32 for parameter in fast.sam.parameters())
    assert pickle.loads(pickle.dumps(fast)).precision == "fast"


def test_unknown_precision() -> None:
    with pytest.raises(ValueError, match="'half' is unknown; choose 'exact', 'fast', 'auto' or 'official'"):
        get_backend("tiny_random", "cpu", "half")


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="'cuda:1' was asked for, but torch sees no CUDA device"):
        SamBackend("tiny_random", "cuda:1")
    assert SamBackend("tiny_random", "auto").device == torch.device("cpu")


def test_frozen(backends: dict[int, SamBackend]) -> None:
    assert not any(parameter.requires_grad for parameter in backends[1].sam.parameters())
    assert not backends[1].sam.training
