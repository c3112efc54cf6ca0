"""Every kind of user image: converted by the documented rule, or refused with the reason."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from sam_gym.data import read_image, to_rgb_uint8

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 5), dtype=np.uint8)
RGB = RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8)

_DTYPES = st.sampled_from([np.uint8, np.bool_, np.uint16, np.int16, np.int64, np.uint32])
_SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda hw: st.sampled_from([hw, (*hw, 1), (*hw, 3), (*hw, 4)])
)


def test_uint8_is_kept():
    assert np.array_equal(to_rgb_uint8(RGB), RGB)
    assert np.array_equal(to_rgb_uint8(GREY), np.dstack([GREY] * 3))
    assert np.array_equal(to_rgb_uint8(GREY[:, :, None]), np.dstack([GREY] * 3))


def test_alpha_is_dropped():
    alpha = np.zeros((6, 5, 1), np.uint8)  # transparent: the stored colour stays
    assert np.array_equal(to_rgb_uint8(np.dstack([RGB, alpha])), RGB)
    # an alpha of 65535 has no say in the stretch
    deep = RGB.astype(np.uint16) * 3
    with_alpha = np.dstack([deep, np.full((6, 5, 1), 65535, np.uint16)])
    assert np.array_equal(to_rgb_uint8(with_alpha), to_rgb_uint8(deep))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_integer_image(data):
    array = data.draw(arrays(data.draw(_DTYPES), data.draw(_SHAPES)))
    before = array.copy()
    out = to_rgb_uint8(array)
    assert out.dtype == np.uint8
    assert out.shape == (*array.shape[:2], 3)
    assert out.flags.c_contiguous
    assert out.flags.writeable
    assert not np.shares_memory(out, array)
    assert np.array_equal(array, before)
    # brighter never becomes darker
    flat = np.broadcast_to(array.reshape(*array.shape[:2], -1)[:, :, :3], out.shape)
    order = np.argsort(flat.ravel(), kind="stable")
    assert (np.diff(out.ravel()[order].astype(int)) >= 0).all()


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint8, _SHAPES), st.sampled_from([np.float32, np.float64]))
def test_floats_bring_bytes_back(array, dtype):
    unit = array.astype(dtype) / dtype(255)
    assert np.array_equal(to_rgb_uint8(unit), to_rgb_uint8(array))
    if array[..., :3].max() >= 2:
        assert np.array_equal(to_rgb_uint8(array.astype(dtype)), to_rgb_uint8(array))


def test_bool():
    out = to_rgb_uint8(np.array([[True, False]]))
    assert out.tolist() == [[[255] * 3, [0] * 3]]


def test_uint16_uses_its_own_range():
    ramp = np.linspace(1000, 5000, 10_000).reshape(100, 100).astype(np.uint16)
    out = to_rgb_uint8(ramp)
    assert (out.min(), out.max()) == (0, 255)
    assert abs(int(out[50, 0, 0]) - 128) <= 1
    hot = ramp.copy()
    hot[0, 0] = 65535  # one hot pixel does not darken the rest
    assert np.abs(to_rgb_uint8(hot).astype(int) - out)[1:].max() <= 1
    assert np.array_equal(to_rgb_uint8(ramp.astype(">u2")), out)


def test_constant_and_sparse_uint16():
    assert not to_rgb_uint8(np.full((4, 4), 700, np.uint16)).any()
    spot = np.zeros((100, 100), np.uint16)
    spot[3, 3] = 900  # beyond the percentiles, and yet all there is
    assert to_rgb_uint8(spot)[3, 3].tolist() == [255] * 3


def test_wide_integers():
    assert np.array_equal(to_rgb_uint8(RGB.astype(np.int64)), RGB)
    assert to_rgb_uint8(np.array([[-1000, 3000]], np.int16))[0, :, 0].tolist() == [0, 255]


def test_lists():
    assert to_rgb_uint8([[0, 255]]).shape == (1, 2, 3)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros(5), r"shape \(H, W\) or \(H, W, 1, 3 or 4\), got \(5,\)"),
        (np.zeros(()), r"got \(\)"),
        (np.zeros((2, 8, 8, 3)), r"got \(2, 8, 8, 3\): one image at a time"),
        (np.zeros((8, 8, 2)), r"must have 1 \(grey\), 3 \(RGB\) or 4 \(RGBA\) channels, got 2"),
        (np.zeros((8, 8, 5)), r"got 5"),
        (np.zeros((3, 64, 48)), r"looks channel-first.*transpose\(1, 2, 0\)"),
        (np.zeros((1, 64, 48)), r"looks channel-first"),
        (np.zeros((0, 8)), r"has no pixels: its shape is \(0, 8\)"),
        (np.zeros((8, 0, 3)), r"has no pixels"),
        (np.array([[0.5, np.nan]]), r"has 1 values that are NaN or infinite"),
        (np.array([[np.inf, -np.inf]]), r"has 2 values that are NaN or infinite"),
        (np.array([[-0.5, 0.5]]), r"float values from -0\.5 to 0\.5"),
        (np.array([[0.0, 300.0]]), r"float values from 0 to 300"),
        (np.array([[0.0, 1.3]]), r"up to 1\.3, which is neither"),
        (np.array([[1j]]), r"must hold numbers, got dtype complex"),
        (np.array([["a"]]), r"must hold numbers"),
        (np.array([[None]]), r"must hold numbers, got dtype object"),
    ],
)
def test_refused(image, message):
    with pytest.raises(ValueError, match=rf"^photo .*{message}"):
        to_rgb_uint8(image, "photo")


def test_rounding_error_around_one_is_still_one():
    assert to_rgb_uint8(np.array([[np.nextafter(np.float32(1), np.float32(2)), -1e-9]]))[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "F", "I"])
def test_pil_modes(mode, tmp_path):
    source = Image.fromarray(RGB)
    image = Image.fromarray(GREY.astype(np.uint16) * 9) if mode == "I;16" else source.convert(mode)
    out = to_rgb_uint8(image)
    assert out.shape == (6, 5, 3)
    if mode in ("RGB", "RGBA"):
        assert np.array_equal(out, RGB)
    if mode == "P":
        assert np.array_equal(out, np.asarray(image.convert("RGB")))
    path = tmp_path / ("image.tif" if mode in ("CMYK", "F", "I") else "image.png")
    image.save(path)
    assert np.array_equal(read_image(path), out)


def test_read_image_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no image file .*nothing.png"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path)


def test_read_image_that_is_none(tmp_path):
    for name, content in (("text.png", b"hello"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} \({len(content)} bytes\) is not an image"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_truncated_files(suffix, tmp_path):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    for share in (0.2, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ValueError, match=r"truncated or damaged|not an image"):
            read_image(path)


def test_stack_is_refused(tmp_path):
    pages = [Image.fromarray(GREY)] * 3
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match="stack of 3 images"):
        read_image(tmp_path / "stack.tif")
