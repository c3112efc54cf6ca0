"""SAM 2 behind the interface of all backends, on random weights: it says what transformers' own code says."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sam_gym.evaluation import evaluate
from sam_gym.prompters import oracle_clicks
from sam_gym.sam import CheckpointError, PromptBatch, backend, checkpoint_id, get_backend, load_sam, sam2_files
from sam_gym.sam.backend import make_backend
from sam_gym.sam.sam2 import Sam2Backend

SIZES = ((50, 80), (64, 64), (90, 33))
POINTS = [[(10.0, 20.0), (30.0, 40.0)], [(5.0, 6.0)], None, [(11.0, 60.0)], None]
LABELS = [[1, 0], [1], None, [0], None]
BOXES = [None, (2.0, 3.0, 50.0, 60.0), (4.0, 4.0, 30.0, 70.0), None, None]
IMAGES = [0, 1, 2, 2, 0]
"""Of every kind of prompt one, none at all included; the last but one comes with a mask."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SAM 2 of random weights for images of 64 x 64, as transformers saves it."""
    from transformers import (
        Sam2Config,
        Sam2HieraDetConfig,
        Sam2ImageProcessor,
        Sam2MaskDecoderConfig,
        Sam2Model,
        Sam2PromptEncoderConfig,
        Sam2VisionConfig,
    )

    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[64, 64],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 1, 1],
        window_size_per_stage=[4, 4, 4, 2],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[2, 2],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=32,
    )
    config = Sam2Config(
        vision_config=vision,
        prompt_encoder_config=Sam2PromptEncoderConfig(hidden_size=32, image_size=64),
        mask_decoder_config=Sam2MaskDecoderConfig(
            hidden_size=32, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=32
        ),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Sam2Model(config)
        for name, weights in model.named_parameters():  # transformers' own are so small that all masks look alike
            if "norm" not in name:
                torch.nn.init.normal_(weights, std=0.3 if weights.ndim > 1 else 0.1)
    path = tmp_path_factory.mktemp("sam2") / "tiny"
    model.save_pretrained(path)
    Sam2ImageProcessor(size={"height": 64, "width": 64}).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def sam2(folder: Path) -> Sam2Backend:
    """Decodes up to eight masks together."""
    return Sam2Backend(str(folder), "cpu", micro_batch=8)


def picture(size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def mask_prompt() -> torch.Tensor:
    return torch.as_tensor(np.random.default_rng(9).normal(0, 8, (16, 16)), dtype=torch.float32)


def batch(rows: list[int]) -> PromptBatch:
    return PromptBatch.from_lists(
        points=[POINTS[row] for row in rows],
        labels=[LABELS[row] for row in rows],
        boxes=[BOXES[row] for row in rows],
        mask_logits=[mask_prompt() if row == 3 else None for row in rows],
    )


@pytest.mark.parametrize("multimask", [False, True])
def test_equals_transformers(folder: Path, sam2: Sam2Backend, multimask: bool) -> None:
    """Five prompts in one call, each against transformers' processor and model alone; also alone against in company."""
    from transformers import Sam2Model, Sam2Processor

    images = [picture(size, seed) for seed, size in enumerate(SIZES)]
    embeddings = sam2.encode(images)
    rows = list(range(len(IMAGES)))
    made = sam2.decode([embeddings[i] for i in IMAGES], batch(rows), multimask=multimask, full=True)
    assert made.object_score is not None
    assert made.full is not None
    model, processor = Sam2Model.from_pretrained(folder).eval(), Sam2Processor(sam2._processor)
    for row, number in enumerate(IMAGES):
        given: dict[str, Any] = {"images": images[number], "return_tensors": "pt"}
        if POINTS[row]:
            given |= {"input_points": [[[list(xy) for xy in POINTS[row]]]], "input_labels": [[LABELS[row]]]}
        if BOXES[row]:
            given["input_boxes"] = [[list(BOXES[row])]]
        inputs = processor(**given)
        sizes = inputs.pop("original_sizes")
        if row == 3:
            inputs["input_masks"] = mask_prompt()[None, None]
        with torch.no_grad():
            expected = model(**inputs, multimask_output=multimask)
        torch.testing.assert_close(made.logits[row], expected.pred_masks[0, 0], rtol=0, atol=1e-4)
        torch.testing.assert_close(made.predicted_iou[row], expected.iou_scores[0, 0], rtol=0, atol=1e-4)
        torch.testing.assert_close(made.object_score[row], expected.object_score_logits[0, 0, 0], rtol=0, atol=1e-4)
        wanted = processor.post_process_masks(expected.pred_masks, sizes, binarize=False)[0][0]
        full = sam2.upscale(made.logits[row], embeddings[number])
        torch.testing.assert_close(full, wanted, rtol=0, atol=1e-4)
        assert torch.equal(made.full[row], full > 0)
        assert made.full[row].shape[1:] == SIZES[number]
        alone = sam2.decode([embeddings[number]], batch([row]), multimask=multimask)
        torch.testing.assert_close(alone.logits[0], made.logits[row], rtol=0, atol=1e-4)
    assert made.logits.std() > 0.1
    assert (made.logits[0] - made.logits[4]).abs().max() > 0.01


def test_padding_would_change_masks(sam2: Sam2Backend) -> None:
    """Why prompts are decoded by kind: a point that is none (label -10, as transformers pads) moves the logits."""
    (embedding,) = sam2.encode([picture((64, 64))])
    point, label = torch.tensor([[[[20.0, 30.0]]]]), torch.tensor([[[1]]])
    with torch.no_grad():
        plain = sam2._decode_alike([embedding], point, label, None, None, True)
        more = torch.cat([point, torch.zeros(1, 1, 3, 2)], dim=2), torch.cat([label, torch.full((1, 1, 3), -10)], dim=2)
        padded = sam2._decode_alike([embedding], *more, None, None, True)
    assert (plain.pred_masks - padded.pred_masks).abs().max() > 0.01


def test_embeddings_in_memory_and_on_disk(folder: Path, tmp_path: Path) -> None:
    """All features of an image, the fine ones too, come back from either tier to the last bit."""
    image, other = picture((50, 80)), picture((50, 80), 1)
    first = make_backend(str(folder), "cpu", disk_cache=tmp_path)
    (made,) = first.encode([image])
    assert first.encode([image, other])[0].finer is not None
    assert first.encoder_calls == 2
    again = make_backend(str(folder), "cpu", disk_cache=tmp_path)
    (read,) = again.encode([image])
    assert again.encoder_calls == 0
    assert made.finer is not None
    assert read.finer is not None
    assert torch.equal(read.features, made.features)
    assert torch.equal(read.finer, made.finer)
    assert made.features.shape == (32, 4, 4)
    assert made.finer.shape == (96, 4, 4)
    prompts = PromptBatch.from_lists(boxes=[(3, 4, 50, 40)])
    assert torch.equal(first.decode([made], prompts).logits, again.decode([read], prompts).logits)


@pytest.mark.parametrize("vector", [False, True])
def test_an_episode(folder: Path, vector: bool) -> None:
    """Environments run on it, with the mask fed back; single and vector ones agree."""
    settings = {"checkpoint": str(folder), "device": "cpu", "split": "val", "max_prompts": 3}
    name = "SamPrompt-Synthetic-v0"
    single = gymnasium.make(name, **settings)
    actions = [40, 300, 120]
    seen, _ = single.reset(seed=3)
    if vector:
        many = gymnasium.make_vec(name, 2, **settings)
        both, _ = many.reset(seed=3)
        assert np.array_equal(both["maps"][0], seen["maps"])
    for action in actions:
        seen, reward, ended, _, info = single.step(action)
        if vector:
            both, rewards, *_ = many.step(np.array([action, action]))
            assert rewards[0] == pytest.approx(reward, abs=1e-6)
            assert np.array_equal(both["maps"][0], seen["maps"])
    assert ended
    assert 0 <= info["iou"] <= 1
    single.close()
    if vector:
        many.close()


def test_evaluate(folder: Path) -> None:
    """A record names the weights."""
    record = evaluate(
        oracle_clicks, "SamPrompt-Synthetic-v0", "val", max_objects=2, checkpoint=str(folder), device="cpu"
    )
    assert record.provenance["checkpoint"] == checkpoint_id(str(folder))
    assert len(record.iou) == 2
    assert checkpoint_id(folder).startswith("tiny-")


def test_shared_and_sent(folder: Path) -> None:
    """One backend a process; another process asks for its own."""
    shared = get_backend(str(folder), "cpu", "auto")
    assert isinstance(shared, Sam2Backend)
    assert shared.precision == "exact"
    assert pickle.loads(pickle.dumps(shared)) is shared
    backend._shared_backend.cache_clear()


def test_what_does_not_carry_over(folder: Path, sam2: Sam2Backend) -> None:
    """It is refused by name, with the way out."""
    with pytest.raises(CheckpointError, match=r"tuning decoders.*'mobile_sam'"):
        load_sam(str(folder))
    with pytest.raises(CheckpointError, match="written for SAM 1"):
        load_sam("sam2.1_hiera_tiny")
    for precision in ("fast", "official"):
        with pytest.raises(ValueError, match="Take precision='exact'"):
            make_backend(str(folder), "cpu", precision)
    (embedding,) = sam2.encode([picture((64, 64))])
    with pytest.raises(ValueError, match="--attention full"):
        sam2.window(embedding, (0, 0, 32))


def test_finding_the_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name: the variable, then the cache folder, then the Hub; what cannot be had says three ways out."""
    monkeypatch.setattr(sam2_files, "cache_dir", lambda: tmp_path)
    with pytest.raises(CheckpointError, match=r"(?s)\(1\) pass the path.*SAM_GYM_MEDSAM2"):
        sam2_files.folder_of("medsam2")
    own = tmp_path / "checkpoints" / "medsam2"
    own.parent.mkdir()
    own.symlink_to(folder)
    assert sam2_files.folder_of("medsam2") == own
    monkeypatch.setenv("SAM_GYM_SAM2_1_HIERA_TINY", str(folder))
    assert sam2_files.folder_of("sam2.1_hiera_tiny") == folder
    assert checkpoint_id("sam2.1_hiera_tiny").startswith("sam2.1_hiera_tiny-")
    with pytest.raises(CheckpointError, match=r"did you mean|Did you mean 'sam2.1_hiera_tiny'"):
        load_sam("sam2.1_hiera_tinny")


def test_broken_folders(folder: Path, tmp_path: Path) -> None:
    """Another model, no weights, or half of them: each is said, and never filled up with random numbers."""
    import safetensors.torch

    with pytest.raises(CheckpointError, match="no config.json"):
        make_backend(str(tmp_path), "cpu")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "sam"}))
    state = safetensors.torch.load_file(folder / "model.safetensors")
    half = {name: tensor for name, tensor in state.items() if not name.startswith("mask_decoder.conv_s")}
    safetensors.torch.save_file(half, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="type 'sam'"):
        make_backend(str(tmp_path), "cpu")
    (tmp_path / "config.json").write_text(json.dumps(config))
    meta = tmp_path / "MedSAM2_latest.pt"
    torch.save({"model": {"image_encoder.trunk.pos_embed": torch.zeros(1), "sam_mask_decoder.x": torch.zeros(1)}}, meta)
    with pytest.raises(CheckpointError, match="SAM 2 in Meta's form.*script"):
        make_backend(str(meta), "cpu")
    with pytest.raises(CheckpointError, match=r"lacks 4 of the weights.*conv_s0"):
        make_backend(str(tmp_path), "cpu")
