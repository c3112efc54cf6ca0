"""IoU, Dice, areas and boxes by hand, and masks of several sizes in one batch."""

from __future__ import annotations

import pytest
import torch

from sam_gym.sam.masks import examine, measure, upscale


def mask(*rows: str) -> torch.Tensor:
    return torch.tensor([[character == "#" for character in row] for row in rows])


@pytest.mark.parametrize(
    ("a", "b", "iou", "dice"),
    [
        (mask("##..", "##.."), mask("##..", "##.."), 1, 1),
        (mask("##..", "##.."), mask("..##", "..##"), 0, 0),
        (mask("##..", "##.."), mask(".##.", ".##."), 2 / 6, 4 / 8),
        (mask("####", "...."), mask("#...", "...."), 1 / 4, 2 / 5),
        (mask("....", "...."), mask("#...", "...."), 0, 0),
        (mask("....", "...."), mask("....", "...."), 1, 1),
    ],
)
def test_overlap(a: torch.Tensor, b: torch.Tensor, iou: float, dice: float) -> None:
    for first, second in ((a, b), (b, a)):
        got = measure(first[None, None], second[None], boxes=False)
        assert (float(got.iou), float(got.dice)) == pytest.approx((iou, dice))


@pytest.mark.parametrize(
    ("one", "area", "box"),
    [
        (mask("....", ".##.", ".#.."), 3, [1, 1, 3, 3]),
        (mask("...#", "....", "#..."), 2, [0, 0, 4, 3]),
        (mask("....", "....", "...."), 0, [0, 0, 0, 0]),
        (mask("####", "####", "####"), 12, [0, 0, 4, 3]),
    ],
)
def test_area_and_box(one: torch.Tensor, area: int, box: list[int]) -> None:
    got = measure(one[None, None], None, boxes=True)
    assert got.area.tolist() == [[area]]
    assert got.box.tolist() == [[box]]
    assert got.intersection is None


def test_sizes_in_any_order_come_back_in_theirs() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 2, 8, 8, generator=generator)
    sizes = [((32, 24), (64, 48)), ((32, 32), (50, 50)), ((32, 24), (64, 48)), ((8, 32), (5, 20)), ((32, 32), (50, 50))]
    truths = [torch.rand(size, generator=generator) < 0.5 for _, size in sizes]
    together, kept = examine(logits, 32, sizes, truths, boxes=True, keep=True)
    for i, (inside, size) in enumerate(sizes):
        alone = measure(upscale(logits[i : i + 1], 32, inside, size) > 0, torch.stack(truths[i : i + 1]), boxes=True)
        for name in ("area", "box", "intersection", "truth_area", "iou", "dice"):
            assert torch.equal(getattr(together, name)[i : i + 1], getattr(alone, name)), name
        assert kept[i].shape == (2, *size)
        assert kept[i].sum() == together.area[i].sum()
