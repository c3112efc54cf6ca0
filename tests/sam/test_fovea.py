"""Windows: what they hold, that blocks count as their cells would, and how near the masks are to the whole decode."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_gym._utils.boxes import noisy_box
from sam_gym.data import load_data
from sam_gym.envs.episode import view_of
from sam_gym.sam import PromptBatch, SamBackend, fovea
from sam_gym.sam.backend import ImageEmbedding
from sam_gym.sam.decoder import put_together, visit, visit_part

GRID = 16
"""Cells a side of the small model's embeddings."""

SIZES = [(512, 512), (512, 300), (100, 1000), (20, 30), (2000, 1500)]


@pytest.fixture(scope="module")
def backend() -> SamBackend:
    return SamBackend("tiny_random", "cpu")


def embedding_of(backend: SamBackend, size: tuple[int, int], seed: int = 0) -> ImageEmbedding:
    """An image of noise, embedded."""
    rng = np.random.default_rng(seed)
    return backend.encode([rng.integers(0, 256, (*size, 3)).astype(np.uint8)])[0]


def prompt(size: tuple[int, int], n: int = 1) -> PromptBatch:
    """A box and two clicks, n times."""
    scale = np.array([size[1], size[0]])
    return PromptBatch.from_lists(
        boxes=[[*(0.2 * scale), *(0.5 * scale)]] * n,
        points=[[0.3 * scale, 0.9 * scale]] * n,
        labels=[[1, 0]] * n,
    )


def overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    """IoU of two masks."""
    return float((one & other).sum() / (one | other).sum().clamp(min=1))


@given(
    size=st.sampled_from(SIZES),
    left=st.floats(-0.5, 1.2),
    top=st.floats(-0.5, 1.2),
    extent=st.floats(0.001, 3),
)
@settings(max_examples=60, deadline=None)
def test_a_window_holds_what_a_view_shows_of_the_image(backend, size, left, top, extent):
    embedding = embedding_of(backend, size)
    longer = max(size)
    view = np.array([left, top, extent]) * longer
    window = backend.window(embedding, view)
    held = [(window.corner[axis], window.corner[axis] + len((window.down, window.across)[axis])) for axis in (0, 1)]
    for axis, low in ((0, view[1]), (1, view[0])):
        first, last = np.clip([low, low + view[2]], 0, size[axis])
        cell = longer / GRID
        assert held[axis][0] <= first + 0.5 + 1e-6
        assert held[axis][1] >= last - 0.5 - 1e-6
        assert 0 <= held[axis][0] <= held[axis][1] <= size[axis]
        assert held[axis][1] - held[axis][0] <= window.side * cell + 1


def test_a_cell_that_stands_for_several_is_read_as_often_and_parts_are_put_together():
    probe, cells, places = torch.randn(2, 6, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    times = torch.tensor([1, 3, 1, 6, 1, 1, 2])
    every = [x.repeat_interleave(times, dim=1) for x in (cells, places)]
    whole = visit(*every, None, probe)[1]
    counted = visit(cells, places, None, probe, times.log().expand(2, -1))[1]
    torch.testing.assert_close(counted, whole)
    parts = [visit_part(*part, None, probe)[1] for part in zip(*(x.chunk(4, dim=1) for x in every), strict=True)]
    torch.testing.assert_close(put_together(parts), whole)


@pytest.mark.parametrize("multimask", [False, True])
def test_a_window_of_the_whole_image_that_is_not_coarse_is_the_whole_decode(backend, monkeypatch, multimask):
    monkeypatch.setattr(fovea, "LARGEST_FINE", GRID)
    size = (90, 120)
    embedding, prompts = embedding_of(backend, size), prompt(size)
    truth = torch.zeros(size, dtype=torch.bool)
    truth[20:50, 30:70] = True
    window = backend.window(embedding, (0, 0, 120))
    previous = torch.randn(backend.mask_size)
    asked = {"multimask": multimask, "statistics": True, "truths": [truth], "full": True}
    found = backend.decode_windows([window], prompts, [previous], **asked)
    fed = PromptBatch(prompts.points, prompts.labels, prompts.boxes, previous[None], np.ones(1, np.bool_))
    whole = backend.decode([embedding], fed, **asked)
    torch.testing.assert_close(found.logits[0], whole.logits[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.predicted_iou, whole.predicted_iou, rtol=1e-3, atol=1e-4)
    assert all(overlap(a, b) > 0.999 for a, b in zip(found.full[0], whole.full[0], strict=True))
    torch.testing.assert_close(found.statistics.iou, whole.statistics.iou, rtol=0, atol=1e-3)


def test_numbers_are_those_of_the_masks_at_full_size(backend, monkeypatch):
    monkeypatch.setattr(fovea, "LARGEST_FINE", 12)
    sizes = [(90, 120), (200, 100), (90, 120)]
    embeddings = [embedding_of(backend, size, seed) for seed, size in enumerate(sizes)]
    views = [(10, 20, 30), (-20, 90, 60), (0, 0, 500)]  # the last one is coarse, and in a batch of its own
    windows = [backend.window(*one) for one in zip(embeddings, views, strict=True)]
    assert (windows[2].side, windows[2].mask_size) == (GRID, (2 * GRID, 2 * GRID))
    truths = [torch.rand(size) > 0.5 for size in sizes]
    parts = [prompt(size) for size in sizes]
    prompts = PromptBatch.from_lists(
        **{name: [getattr(p, name)[0] for p in parts] for name in ("boxes", "points", "labels")}
    )
    found = backend.decode_windows(windows, prompts, statistics=True, truths=truths, full=True)
    for row, (mask, truth, window) in enumerate(zip(found.full, truths, windows, strict=True)):
        assert mask.shape == (1, *truth.shape)
        assert found.statistics.iou[row, 0] == pytest.approx(overlap(mask[0], truth))
        where = mask[0].nonzero()
        if len(where):
            (y0, x0), (y1, x1) = where.amin(0), where.amax(0) + 1
            assert found.statistics.box[row, 0].tolist() == [x0, y0, x1, y1]
        assert window.at_full_size(found.logits[row]).gt(0).sum() == mask.sum() == found.statistics.area[row, 0]


def test_a_mask_does_not_depend_on_threads_and_hardly_on_its_company(backend):
    size = (80, 80)
    windows = [backend.window(embedding_of(backend, size), (x, x, 20)) for x in (0, 10, 30, 40)]
    made = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        made[threads] = backend.decode_windows(windows, prompt(size, 4)).logits
    torch.set_num_threads(1)
    assert all(one.equal(other) for one, other in zip(made[1], made[2], strict=True))
    alone = backend.decode_windows(windows[2:3], prompt(size)).logits[0]
    torch.testing.assert_close(alone, made[1][2], rtol=1e-4, atol=1e-4)


def test_windows_of_one_side_may_be_visited_together(backend, monkeypatch):
    size = (80, 80)
    embedding = embedding_of(backend, size)
    windows = [backend.window(embedding, view) for view in ((0, 0, 20), (30, 30, 60), (40, 10, 25), (5, 50, 20))]
    rows = [
        {"boxes": (5, 5, 30, 40)},
        {"boxes": (5, 5, 30, 40), "points": [(9, 9)], "labels": [1]},
        {"points": [(3, 70)] * 4, "labels": [0] * 4},
    ]
    rows.append(rows[0])
    prompts = PromptBatch.from_lists(
        **{name: [row.get(name) for row in rows] for name in ("boxes", "points", "labels")}
    )
    before = [None, torch.randn(windows[1].mask_size), torch.randn(windows[2].mask_size), None]
    alone = backend.decode_windows(windows, prompts, before)
    monkeypatch.setattr(fovea.Fovea, "_together", lambda self, windows: [[1, 3, 2], [0]])
    together = backend.decode_windows(windows, prompts, before)
    for one, other in zip(alone.logits, together.logits, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(alone.predicted_iou, together.predicted_iou, rtol=1e-4, atol=1e-4)


def test_bad_input_is_told(backend):
    size = (80, 80)
    window = backend.window(embedding_of(backend, size), (0, 0, 20))
    own = PromptBatch.from_lists(boxes=[[1, 1, 9, 9]], mask_logits=[torch.zeros(backend.mask_size)])
    with pytest.raises(ValueError, match=r"give their mask prompts as previous"):
        backend.decode_windows([window], own)
    with pytest.raises(ValueError, match=r"shape \(64, 64\), its window \(24, 24\)"):
        backend.decode_windows([window], prompt(size), [torch.zeros(backend.mask_size)])
    with pytest.raises(ValueError, match="2 embeddings for 1 prompts"):
        backend.decode_windows([window] * 2, prompt(size))
    with pytest.raises(ValueError, match=r"looks at whole images: choose 'exact'"):
        SamBackend("tiny_random", "cpu", "official").window(window.embedding, (0, 0, 20))


@pytest.mark.weights
@pytest.mark.real_images
def test_masks_are_near_those_of_the_whole_decode():
    backend, data, rng = SamBackend("mobile_sam", "cpu"), load_data("isbi2012", "val", "real"), np.random.default_rng(0)
    rows = np.flatnonzero(data.objects.image_index == data.objects.image_index[0])
    rows = rows[np.linspace(0, len(rows) - 1, 16).astype(int)]
    image = data.image(int(data.objects.image_index[0]))
    embedding = backend.encode([image])[0]
    truths = [
        torch.as_tensor(data.mask(int(data.objects.image_index[row]), int(data.objects.object_id[row]))) for row in rows
    ]
    boxes = [noisy_box(data.objects.box[row], 0.2, image.shape[:2], rng) for row in rows]
    clicks = [rng.uniform(box[:2], box[2:], (2, 2)) for box in boxes]
    windows = [backend.window(embedding, view_of(box, 1.7)) for box in boxes]
    before, near, overlaps, ious = [None] * len(rows), None, [], []
    for n in range(3):
        given = {"boxes": boxes, "points": [c[:n] for c in clicks], "labels": [[1, 0][:n]] * len(rows)}
        whole = backend.decode(
            [embedding] * len(rows), PromptBatch.from_lists(mask_logits=before, **given), truths=truths, full=True
        )
        found = backend.decode_windows(windows, PromptBatch.from_lists(**given), near, truths=truths, full=True)
        before, near = list(whole.logits[:, 0]), [one[0] for one in found.logits]
        overlaps += [overlap(a[0], b[0]) for a, b in zip(whole.full, found.full, strict=True)]
        ious.append(torch.stack([whole.statistics.iou[:, 0], found.statistics.iou[:, 0]]))
    assert np.mean(overlaps) >= 0.95
    assert np.corrcoef(torch.cat(ious, dim=1).numpy())[0, 1] >= 0.97
