"""The added token: stock code and ours see it alike, and it is stored, refused and copied with its decoder."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from torch import Tensor

from sam_gym.sam import CheckpointError, PromptBatch, SamBackend, checkpoint_id, load_sam, save_decoder
from sam_gym.sam.added_token import NAME, WIDTH, AddedToken, add_token, added_token
from sam_gym.sam.architectures import build
from sam_gym.sam.decoder import BatchedDecoder, embed_sparse
from sam_gym.sam.official import OfficialDecoder
from sam_gym.sam.tuned_decoders import put_on

PREFIX = f"prompt_encoder.{NAME}."


def with_token(seed: int = 0, size: float = 1.0) -> Sam:
    """The tiny SAM with a token of random weights, `size` times as large as it begins."""
    sam = load_sam("tiny_random")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        token = add_token(sam.prompt_encoder)
    with torch.no_grad():
        token.vector.mul_(size)
    return sam.eval().requires_grad_(False)


@pytest.fixture
def sam() -> Sam:
    return with_token(size=3.0)


@pytest.fixture
def image() -> NDArray[np.uint8]:
    smooth = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return smooth.repeat(10, axis=0).repeat(10, axis=1)


POINTS = np.array([[30.0, 40.0], [90.5, 20.25], [140.0, 100.0]], np.float32)
LABELS = np.array([1, 0, 1])
BOX_ALONE = np.array([20.0, 15.0, 100.0, 90.0], np.float32)


def prompts() -> dict[str, dict]:
    """By name, as SamPredictor takes them; a batch of all of them is ragged."""
    smooth = torch.nn.functional.interpolate(torch.linspace(-4, 4, 16).view(1, 1, 4, 4), (64, 64), mode="bilinear")
    mask = smooth[0].numpy()
    return {
        "box": {"box": BOX_ALONE},
        "point": {"point_coords": POINTS[:1], "point_labels": LABELS[:1]},
        "points": {"point_coords": POINTS, "point_labels": LABELS},
        "box and points": {"point_coords": POINTS[:2], "point_labels": LABELS[:2], "box": BOX_ALONE},
        "box and mask": {"box": BOX_ALONE, "mask_input": mask},
        "points and mask": {"point_coords": POINTS[:2], "point_labels": LABELS[:2], "mask_input": mask},
    }


def stock(sam: Sam, image: NDArray[np.uint8]) -> dict[str, Tensor]:
    """SamPredictor's low-resolution logits, prompt by prompt."""
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    return {
        name: torch.as_tensor(predictor.predict(**prompt, multimask_output=False, return_logits=True)[2])
        for name, prompt in prompts().items()
    }


def backend_of(sam: Sam, precision: str = "exact") -> SamBackend:
    """A backend around a model that is not in a file."""
    backend = SamBackend("tiny_random", "cpu", "exact" if precision == "official" else precision)
    backend.sam = sam
    dtype = torch.bfloat16 if precision == "fast" else torch.float32
    backend._decoder = OfficialDecoder(sam) if precision == "official" else BatchedDecoder(sam, dtype)
    return backend


def ours(backend: SamBackend, image: NDArray[np.uint8], names: list[str]) -> Tensor:
    """Logits of these prompts in one call."""
    chosen = [prompts()[name] for name in names]
    batch = PromptBatch.from_lists(
        points=[p.get("point_coords") for p in chosen],
        labels=[p.get("point_labels") for p in chosen],
        boxes=[p.get("box") for p in chosen],
        mask_logits=[torch.as_tensor(p["mask_input"][0]) if "mask_input" in p else None for p in chosen],
    )
    return backend.decode(backend.encode([image]) * len(chosen), batch).logits


# ---------------------------------------------------------------------------------------------- one more prompt token


def test_stock_prompt_encoders_append_it(sam: Sam) -> None:
    base, token = load_sam("tiny_random").prompt_encoder, sam.prompt_encoder.added_token()
    assert token.shape == (1, 1, 32)
    boxes = torch.tensor([[1.0, 2.0, 30.0, 40.0], [5.0, 6.0, 70.0, 80.0]])
    points = (torch.rand(2, 3, 2), torch.ones(2, 3))
    for given in ({"boxes": boxes}, {"points": points}, {"points": points, "boxes": boxes}):
        arguments = {"points": None, "boxes": None, "masks": None, **given}
        sparse, dense = sam.prompt_encoder(**arguments)
        before, dense_before = base(**arguments)
        assert sparse.shape[1] == before.shape[1] + 1
        assert sparse[:, :-1].equal(before)
        assert sparse[:, -1:].equal(token.expand(2, 1, -1))
        assert dense.equal(dense_before)


def test_it_is_a_layer_on_a_vector() -> None:
    token = AddedToken(32)
    assert {name: tuple(p.shape) for name, p in token.named_parameters()} == {
        "vector": (WIDTH,), "project.weight": (32, WIDTH), "project.bias": (32,),
    }  # fmt: skip
    assert WIDTH == 128
    expected = token.project.weight @ token.vector + token.project.bias
    torch.testing.assert_close(token()[0, 0], expected)


def test_every_row_of_a_batch_has_it(sam: Sam) -> None:
    labels = torch.tensor([[1, 0], [-1, -1], [1, -1]], dtype=torch.int8)
    boxes = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8], [torch.nan] * 4])
    tokens, exists = embed_sparse(sam.prompt_encoder, torch.zeros(3, 2, 2), labels, boxes)
    plain, exists_before = embed_sparse(load_sam("tiny_random").prompt_encoder, torch.zeros(3, 2, 2), labels, boxes)
    assert tokens[:, :-1].equal(plain)
    assert exists[:, :-1].equal(exists_before)
    assert exists[:, -1].all()
    assert tokens[:, -1:].equal(sam.prompt_encoder.added_token().expand(3, 1, -1))


@pytest.mark.parametrize("precision", ["exact", "official"])
@pytest.mark.parametrize("together", [False, True])
def test_all_decoders_agree_on_it(sam: Sam, image: NDArray[np.uint8], precision: str, together: bool) -> None:
    """SamPredictor, the official decoder and ours, with every kind of prompt, alone and in a ragged batch."""
    expected, backend = stock(sam, image), backend_of(sam, precision)
    plain = stock(load_sam("tiny_random"), image)
    names = list(expected)
    backend.micro_batch = len(names)
    got = ours(backend, image, names) if together else torch.cat([ours(backend, image, [name]) for name in names])
    for name, logits in zip(names, got, strict=True):
        torch.testing.assert_close(logits, expected[name], rtol=0, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
        assert (expected[name] - plain[name]).abs().max() > 1e-3, f"{name}: the token changes nothing"


def test_fast_decoders_have_it_too(sam: Sam, image: NDArray[np.uint8]) -> None:
    names = list(prompts())
    exact, fast = (ours(backend_of(sam, precision), image, names) for precision in ("exact", "fast"))
    plain = ours(backend_of(load_sam("tiny_random"), "fast"), image, names)
    assert (fast - exact).abs().max() < 0.3 * (fast - plain).abs().max()


def test_a_second_one_is_refused(sam: Sam) -> None:
    with pytest.raises(ValueError, match="has an added token already"):
        add_token(sam.prompt_encoder)
    assert added_token(load_sam("tiny_random").prompt_encoder) is None


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda sam: pickle.loads(pickle.dumps(sam))])
def test_copies_keep_it_as_their_own(sam: Sam, image: NDArray[np.uint8], duplicate: Callable[[Sam], Sam]) -> None:
    twin = duplicate(sam)
    names = list(prompts())
    expected = stock(sam, image)
    assert all(logits.equal(expected[name]) for name, logits in stock(twin, image).items())
    assert ours(backend_of(twin), image, names).equal(ours(backend_of(sam), image, names))
    with torch.no_grad():
        twin.prompt_encoder.added_token.vector.zero_()
    assert all(logits.equal(expected[name]) for name, logits in stock(sam, image).items())
    assert not any(logits.equal(expected[name]) for name, logits in stock(twin, image).items())


# ------------------------------------------------------------------------------------------------------------- in files


def states_equal(first: Sam, second: Sam) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize("token", [False, True])
def test_a_decoder_comes_back_with_its_token_or_without(tmp_path: Path, token: bool, image: NDArray[np.uint8]) -> None:
    model = with_token() if token else load_sam("tiny_random")
    with torch.no_grad():
        model.mask_decoder.iou_token.weight.add_(1)
    save_decoder(model, tmp_path / "tuned.safetensors", "tiny_random")
    loaded = load_sam(tmp_path / "tuned.safetensors")
    assert states_equal(loaded, model)
    assert (added_token(loaded.prompt_encoder) is not None) == token
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert all(logits.equal(stock(model, image)[name]) for name, logits in stock(loaded, image).items())
    assert states_equal(load_sam(f"tiny_random+{tmp_path / 'tuned.safetensors'}"), model)


def test_a_token_of_another_width_comes_back(tmp_path: Path) -> None:
    model = load_sam("tiny_random")
    add_token(model.prompt_encoder, width=7)
    save_decoder(model, tmp_path / "tuned.safetensors", "tiny_random")
    assert load_sam(tmp_path / "tuned.safetensors").prompt_encoder.added_token.vector.shape == (7,)


def test_a_decoder_tuned_from_one_with_a_token_has_that_token(tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save_decoder(with_token(), first, "tiny_random")
    further = load_sam(first)
    with torch.no_grad():
        further.prompt_encoder.added_token.vector.add_(1)
    save_decoder(further, second, first)
    assert states_equal(load_sam(second), further)


def test_identities_tell_tokens_apart(tmp_path: Path) -> None:
    models = {"none": load_sam("tiny_random"), "one": with_token(1), "two": with_token(2)}
    for name, model in models.items():
        save_decoder(model, tmp_path / f"{name}.safetensors", "tiny_random")
    save_decoder(models["one"], tmp_path / "again.safetensors", "tiny_random")
    ids = {name: checkpoint_id(tmp_path / f"{name}.safetensors")[-12:] for name in (*models, "again")}
    assert ids["again"] == ids["one"]
    assert len(set(ids.values())) == 3
    assert all(re.fullmatch(r"\w+-[0-9a-f]{12}", checkpoint_id(tmp_path / f"{name}.safetensors")) for name in models)


def change_of(state: dict[str, Tensor], change: str) -> None:
    if change == "vector missing":
        del state[f"{PREFIX}vector"]
    elif change == "bias missing":
        del state[f"{PREFIX}project.bias"]
    elif change == "wider vector":
        state[f"{PREFIX}vector"] = torch.zeros(WIDTH + 1)
    elif change == "vector of two axes":
        state[f"{PREFIX}vector"] = torch.zeros(1, WIDTH)
    elif change == "empty vector":
        state[f"{PREFIX}vector"] = torch.zeros(0)
    elif change == "other embedding":
        state[f"{PREFIX}project.weight"] = torch.zeros(256, WIDTH)
        state[f"{PREFIX}project.bias"] = torch.zeros(256)
    elif change == "no prompt encoder":
        for name in [name for name in state if name.startswith("prompt_encoder.") and NAME not in name]:
            del state[name]
    elif change == "no mask decoder":
        for name in [name for name in state if name.startswith("mask_decoder.")]:
            del state[name]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("vector missing", "2 not expected (prompt_encoder.added_token.project"),
        ("bias missing", "1 missing (prompt_encoder.added_token.project.bias)"),
        ("wider vector", "1 of another shape (prompt_encoder.added_token.project.weight)"),
        ("vector of two axes", "1 of another shape (prompt_encoder.added_token.vector)"),
        ("empty vector", "3 not expected (prompt_encoder.added_token"),
        ("other embedding", "2 of another shape (prompt_encoder.added_token.project.bias"),
        ("no prompt encoder", "missing (prompt_encoder."),
        ("no mask decoder", "missing (mask_decoder."),
    ],
)
def test_a_token_that_does_not_fit_is_described_and_leaves_the_base_alone(
    tmp_path: Path, change: str, told: str
) -> None:
    tuned = with_token()
    with torch.no_grad():
        for parameter in (*tuned.mask_decoder.parameters(), *tuned.prompt_encoder.parameters()):
            parameter.add_(1)
    state = {name: t for name, t in tuned.state_dict().items() if not name.startswith("image_encoder.")}
    state = {name: t for name, t in state.items() if name.startswith(("mask_decoder.", "prompt_encoder."))}
    change_of(state, change)
    path = tmp_path / "decoder.safetensors"
    safetensors.torch.save_file(state, path)
    base = load_sam("tiny_random")
    with pytest.raises(CheckpointError, match=re.escape(told)):
        put_on(base, path)
    assert added_token(base.prompt_encoder) is None
    assert not base.prompt_encoder._forward_hooks
    assert states_equal(base, load_sam("tiny_random"))
    with pytest.raises(CheckpointError, match="does not fit on its base"):
        load_sam(f"tiny_random+{path}")


def test_loading_it_leaves_the_random_state_alone(tmp_path: Path) -> None:
    save_decoder(with_token(), tmp_path / "tuned.safetensors", "tiny_random")
    before = torch.random.get_rng_state()
    load_sam(tmp_path / "tuned.safetensors")
    assert torch.random.get_rng_state().equal(before)


def test_backends_load_it_and_keep_embeddings_of_the_base(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    model = with_token(size=3.0)
    path = tmp_path / "tuned.safetensors"
    save_decoder(model, path, "tiny_random")
    names = list(prompts())
    for precision in ("exact", "fast", "official"):
        backend = SamBackend(str(path), "cpu", precision)
        assert ours(backend, image, names).equal(ours(backend_of(model, precision), image, names)), precision
        assert ours(pickle.loads(pickle.dumps(backend)), image, names).equal(ours(backend, image, names))
    folder = tmp_path / "embeddings"
    plain = SamBackend("tiny_random", "cpu", disk_cache=folder)
    expected = plain.encode([image])[0].features
    tuned = SamBackend(str(path), "cpu", disk_cache=folder)
    assert tuned.encode([image])[0].features.equal(expected)
    assert (plain.encoder_calls, tuned.encoder_calls) == (1, 0)


def test_whole_models_are_built_without_it() -> None:
    assert not any(NAME in name for name in build("tiny").state_dict())
