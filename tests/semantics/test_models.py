"""CLIP models: every kind of name, what is kept, and what is said when one cannot be had."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import safetensors.torch
import torch

from sam_gym.semantics import ClipError, ClipModel, load_clip, models

BuildClip = Callable[..., ClipModel]
TinyConfig = Callable[..., dict]


@pytest.fixture(autouse=True)
def _no_model_is_kept():
    models._load.cache_clear()
    yield
    models._load.cache_clear()


@pytest.fixture
def random_micro(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """clip-micro's folder with its own architecture and random weights, float16 as they are shipped."""
    (tmp_path / "config.json").write_text((models.MICRO_FOLDER / "config.json").read_text())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = {key: value.half() for key, value in models.untrained_micro().model.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "weights.safetensors")
    monkeypatch.setattr(models, "MICRO_FOLDER", tmp_path)
    return tmp_path


@pytest.fixture
def local_folder(tmp_path: Path, clip: ClipModel, tiny_config: TinyConfig) -> Path:
    """A folder as open_clip writes it, with the tiny model in it."""
    config = {"model_cfg": tiny_config(), "preprocess_cfg": {"mean": [0.5, 0.4, 0.6], "std": [0.25, 0.2, 0.3]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(clip.model.state_dict(), tmp_path / "open_clip_model.safetensors")
    return tmp_path


def test_micro_loads_frozen_and_once(random_micro: Path) -> None:
    clip = load_clip("clip-micro", "cpu")
    assert clip.name == "clip-micro"
    assert not clip.model.training
    assert {(parameter.requires_grad, parameter.dtype) for parameter in clip.model.parameters()} == {
        (False, torch.float32)
    }
    assert clip.embed_texts(["a nucleus"]).shape == (1, clip.text_dim)
    assert clip.embed_images(torch.zeros(1, 3, clip.image_size, clip.image_size)).shape == (1, clip.text_dim)
    assert load_clip("clip-micro", "cpu") is clip


def test_micro_stays_small(random_micro: Path) -> None:
    assert (random_micro / "weights.safetensors").stat().st_size <= 10_000_000


def test_loading_leaves_the_random_state_alone(random_micro: Path) -> None:
    before = torch.get_rng_state()
    load_clip("clip-micro", "cpu")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("damage", ["missing", "cut off", "of another model"])
def test_micro_without_its_weights_says_what_to_do(random_micro: Path, damage: str) -> None:
    file = random_micro / "weights.safetensors"
    if damage == "missing":
        file.unlink()
    elif damage == "cut off":
        file.write_bytes(file.read_bytes()[:1000])
    else:
        safetensors.torch.save_file({"logit_scale": torch.zeros(())}, file)
    with pytest.raises(ClipError, match=r"weights.safetensors cannot be read: .+\n?.*sam_gym.semantics.train_clip"):
        load_clip("clip-micro", "cpu")


def test_local_folder(local_folder: Path, clip: ClipModel) -> None:
    loaded = load_clip(f"local-dir:{local_folder}", "cpu")
    assert (loaded.image_size, loaded.mean, loaded.std) == (clip.image_size, clip.mean, clip.std)
    pixels = torch.randn(3, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.embed_images(pixels), clip.embed_images(pixels))
    assert torch.equal(loaded.embed_texts(["a nucleus"]), clip.embed_texts(["a nucleus"]))


def test_local_folder_without_weights_is_refused(local_folder: Path) -> None:
    (local_folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(ClipError, match="cannot be loaded: .*[Rr]equired pretrained weights"):
        load_clip(f"local-dir:{local_folder}", "cpu")


def test_weights_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: ClipModel, tiny_config: TinyConfig
) -> None:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Tiny-32", tiny_config())
    file = tmp_path / "own=weights.pt"
    torch.save(clip.model.state_dict(), file)
    loaded = load_clip(f"Tiny-32={file}", "cpu")
    assert torch.equal(loaded.embed_texts(["a nucleus"]), clip.embed_texts(["a nucleus"]))
    torch.save({"logit_scale": torch.zeros(())}, file)
    models._load.cache_clear()
    with pytest.raises(ClipError, match="cannot be loaded: Error"):
        load_clip(f"Tiny-32={file}", "cpu")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ViT-B-23/openai", "unknown CLIP model 'ViT-B-23/openai'. Did you mean 'ViT-B-32'"),
        ("ViT-B-32/laion2b_s34b_b97k", "has no tag 'laion2b_s34b_b97k'. Did you mean 'laion2b_s34b_b79k'"),
        ("vit-b-16/openai", "Did you mean 'ViT-B-16'"),
        ("clip-mirco", "Did you mean 'clip-micro'"),
        ("ViT-B-16-plus/openai", "has no tag 'openai'"),
        ("RN50", "'RN50/openai' or 'RN50/yfcc15m' or 'RN50/cc12m'"),
        ("", "unknown CLIP model ''"),
        ("zzzzzzzzz/q", "open_clip.list_pretrained() lists all"),
    ],
)
def test_unknown_names_are_told_near_ones(name: str, said: str) -> None:
    with pytest.raises(ClipError) as caught:
        load_clip(name, "cpu")
    assert said in str(caught.value)
    assert "Without a network only 'clip-micro' and files of yours are there" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ViT-B-32=/nowhere/weights.pt", "there is no file /nowhere/weights.pt"),
        ("ViT-B-23=/nowhere/weights.pt", "there is no file /nowhere/weights.pt"),
        ("local-dir:/nowhere", "cannot be loaded: .*not found: /nowhere"),
        ("local-dir:", "cannot be loaded: Empty path"),
    ],
)
def test_missing_files_are_named(name: str, said: str) -> None:
    with pytest.raises(ClipError, match=said):
        load_clip(name, "cpu")


def test_failed_download_tells_cause_and_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", fail)
    with pytest.raises(ClipError, match="no route to host") as caught:
        load_clip("ViT-B-32/laion2b_s34b_b79k", "cpu")
    assert "'MODEL=FILE' or 'local-dir:PATH'" in str(caught.value)
    assert "only 'clip-micro'" in str(caught.value)
    monkeypatch.setattr(open_clip.factory, "download_pretrained_from_hf", fail)
    with pytest.raises(ClipError, match=r"hf-hub:some/model.*no route to host"):
        load_clip("hf-hub:some/model", "cpu")


def test_missing_open_clip_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ClipError, match=r"pip install 'sam_gym\[clip\]'"):
        load_clip("clip-micro", "cpu")


def test_unknown_device_is_refused() -> None:
    with pytest.raises(ValueError, match="device 'gpu' is unknown"):
        load_clip("clip-micro", "gpu")


def test_texts_are_embedded_once_and_by_themselves(build_clip: BuildClip, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = build_clip()
    seen = []
    tokenizer = clip.tokenizer
    object.__setattr__(clip, "tokenizer", lambda texts: seen.extend(texts) or tokenizer(texts))
    together = clip.embed_texts(["nucleus", "membrane", "nucleus"])
    assert sorted(seen) == ["membrane", "nucleus"]
    assert torch.equal(clip.embed_texts(["membrane"])[0], together[1])
    assert torch.allclose(together.norm(dim=-1), torch.ones(3))
    assert torch.equal(build_clip().embed_texts(["membrane"])[0], together[1])  # whatever came before
    together.zero_()  # what a caller does with the result changes nothing
    assert clip.embed_texts(["nucleus"]).norm() > 0.9


@pytest.mark.parametrize("texts", [[], "nucleus", ["nucleus", ""], ["  "]])
def test_no_text_is_refused(clip: ClipModel, texts: list[str]) -> None:
    with pytest.raises(ValueError, match="text"):
        clip.embed_texts(texts)


def test_images_do_not_depend_on_their_neighbours(clip: ClipModel) -> None:
    pixels = torch.randn(models.BATCH + 1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    together = clip.embed_images(pixels)
    assert torch.allclose(together.norm(dim=-1), torch.ones(len(pixels)))
    for start, stop in [(0, 1), (5, 8), (models.BATCH, models.BATCH + 1)]:
        assert torch.allclose(clip.embed_images(pixels[start:stop]), together[start:stop], atol=1e-6)


def test_embeddings_can_be_inputs_of_what_is_trained(clip: ClipModel) -> None:
    layer = torch.nn.Linear(clip.text_dim, 1)
    layer(clip.embed_texts(["nucleus"])).sum().backward()
    assert layer.weight.grad is not None
