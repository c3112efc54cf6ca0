"""The published architectures: recognised from tensors alone, and the same models as segment_anything's own builder."""

import json
import struct

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import ImageEncoderViT

from sam_gym.data import load_data
from sam_gym.sam import PromptBatch, SamBackend, load_sam
from sam_gym.sam.architectures import ARCHITECTURES, build, build_empty, recognise, shapes


def _meta(architecture):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes(architecture).items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_is_recognised_by_its_tensors(architecture):
    assert recognise(_meta(architecture)) == architecture


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_the_tensors_are_those_of_segment_anythings_builder(name):
    with torch.device("meta"):
        official = sam_model_registry[name]()
    assert {name: tuple(tensor.shape) for name, tensor in official.state_dict().items()} == shapes(name)


def test_a_misfit_is_compared_with_the_closest():
    state = _meta("vit_l")
    del state["image_encoder.blocks.23.mlp.lin2.bias"]
    with pytest.raises(ValueError, match=r"Compared with vit_l: 1 missing \(image_encoder.blocks.23.mlp.lin2.bias\)\."):
        recognise(state)


@pytest.mark.parametrize("architecture", ["tiny", "mobile_sam"])
def test_a_model_built_for_loading_is_the_same_once_it_is_loaded(architecture):
    full, empty = build(architecture, seed=3), build_empty(architecture)
    empty.load_state_dict(full.state_dict())
    first, second = ({**dict(sam.named_parameters()), **dict(sam.named_buffers())} for sam in (full, empty))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)  # buffers that no file has included


def test_building_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    build_empty("tiny")
    assert torch.equal(torch.get_rng_state(), before)


def test_vit_b_is_segment_anythings_own_model(tmp_path, real_folder):
    """The whole way with one file of 375 MB, read by this package and by segment_anything; weights are random."""
    generator = torch.Generator().manual_seed(1)
    state = build("vit_b", seed=1).state_dict()
    for tensor in state.values():
        if not tensor.any():  # biases and positions begin as zeros, which would hide where they are used
            tensor.normal_(std=0.02, generator=generator)
    path = tmp_path / "my_vit_b.pth"
    torch.save(state, path)
    del state
    backend = SamBackend(str(path), "cpu")
    official = sam_model_registry["vit_b"](checkpoint=str(path))
    path.unlink()
    encoder = backend.sam.image_encoder
    assert isinstance(encoder, ImageEncoderViT)
    assert len(encoder.blocks) == 12
    assert [i for i, block in enumerate(encoder.blocks) if block.window_size == 0] == [2, 5, 8, 11]
    assert repr(backend.sam) == repr(official)
    expected_state = official.state_dict()
    assert all(torch.equal(tensor, expected_state[name]) for name, tensor in backend.sam.state_dict().items())

    # All twelve blocks are the same; two with windows and one without are run, for a quarter of the time.
    for sam in (backend.sam, official):
        del sam.image_encoder.blocks[3:]
    predictor = SamPredictor(official)
    image = load_data("isbi2012", "val", "real").image(0)
    [embedding] = backend.encode([image])
    predictor.set_image(image)
    torch.testing.assert_close(embedding.features[None], predictor.features, rtol=1e-4, atol=1e-4)
    points, labels, box = np.array([[200.0, 240.0], [30.0, 60.0]]), np.array([1, 0]), np.array([150.0, 190.0, 260, 300])
    got = backend.decode([embedding], PromptBatch.from_lists(points=[points], labels=[labels], boxes=[box]))
    _, quality, expected = predictor.predict(points, labels, box, multimask_output=False, return_logits=True)
    scale = float(np.abs(expected).max())
    torch.testing.assert_close(got.logits[0], torch.as_tensor(expected), rtol=0, atol=1e-4 * scale)
    torch.testing.assert_close(got.predicted_iou[0], torch.as_tensor(quality), rtol=1e-4, atol=1e-5)


def _file_of_zeros(path, architecture):
    """A safetensors file of float16 zeros that takes no room on the disk: its header, and a hole for the tensors."""
    header, end = {}, 0
    for name, shape in shapes(architecture).items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@pytest.mark.parametrize(
    ("name", "depth", "width", "windowless"),
    [("vit_l", 24, 1024, [5, 11, 17, 23]), ("vit_h", 32, 1280, [7, 15, 23, 31])],
)
def test_the_large_ones_are_recognised_and_built(tmp_path, name, depth, width, windowless):
    path = tmp_path / "big.safetensors"
    _file_of_zeros(path, name)
    sam = load_sam(path)
    path.unlink()
    blocks = sam.image_encoder.blocks
    assert len(blocks) == depth
    assert blocks[0].attn.num_heads == 16
    assert sam.image_encoder.pos_embed.shape == (1, 64, 64, width)
    assert [i for i, block in enumerate(blocks) if block.window_size == 0] == windowless
    assert {parameter.dtype for parameter in sam.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad or parameter.any() for parameter in sam.parameters())
