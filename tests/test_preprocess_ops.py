"""Decoding, resizing, augmentation and KeepKeys (traps T7, T27, T33, T42, T44, T45)."""

from __future__ import annotations

import io
import pickle

import cv2
import numpy as np
import pytest
from lmdb_helper import picture
from PIL import Image

from openrec import registry
from openrec.errors import ConfigError, SampleError
from openrec.preprocess import create_operators, parseq_aug, transform
from openrec.preprocess.decode import DecodeImage, DecodeImagePIL, UnreadableImage, image_size
from openrec.preprocess.geometry import BASE_SHAPE, bucket, bucket_size, resize_pil
from openrec.preprocess.parseq_aug import OPERATIONS, PARSeqAug, PARSeqAugPIL
from openrec.preprocess.resize import RecTVResize, SliceResize, SliceTVResize, SVTRResize

PIXEL_RNG = np.random.default_rng(0)


def sample(image, training=True, seed=0):
    return {"image": image, "label": "x", "rng": np.random.default_rng(seed), "training": training}


def pil_bytes(image, **save):
    stream = io.BytesIO()
    image.save(stream, **save)
    return stream.getvalue()


RGB = Image.fromarray(picture(61, 33))
ROTATED = Image.Exif()
ROTATED[0x0112] = 6  # orientation: to be turned by 90 degrees
FILES = {
    "jpeg": pil_bytes(RGB, format="JPEG", quality=90),
    "progressive": pil_bytes(RGB, format="JPEG", progressive=True),
    "grey jpeg": pil_bytes(RGB.convert("L"), format="JPEG"),
    "cmyk jpeg": pil_bytes(RGB.convert("CMYK"), format="JPEG"),
    "png": pil_bytes(RGB, format="PNG"),
    "grey png": pil_bytes(RGB.convert("L"), format="PNG"),
    "palette png": pil_bytes(RGB.quantize(16), format="PNG"),
    "rgba png": pil_bytes(RGB.convert("RGBA"), format="PNG"),
    "one bit png": pil_bytes(RGB.convert("1"), format="PNG"),
    "gif": pil_bytes(RGB, format="GIF"),
    "bmp": pil_bytes(RGB, format="BMP"),
    "webp": pil_bytes(RGB, format="WEBP", lossless=True),
    "rotated by exif": pil_bytes(RGB, format="JPEG", exif=ROTATED),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_decode_pil_equals_pillow(name):
    expected = np.asarray(Image.open(io.BytesIO(FILES[name])).convert("RGB"))
    image = DecodeImagePIL()(sample(FILES[name]))["image"]
    assert image.dtype == np.uint8 and np.array_equal(image, expected)
    reverse = DecodeImagePIL("BGR")(sample(FILES[name]))["image"]
    assert np.array_equal(reverse, expected[..., ::-1])
    grey = DecodeImagePIL("Gray")(sample(FILES[name]))["image"]
    assert np.array_equal(grey, np.asarray(Image.open(io.BytesIO(FILES[name])).convert("L")))
    assert image_size(FILES[name]) == RGB.size


def test_decode_opencv():
    data = FILES["png"]
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(DecodeImage("BGR")(sample(data))["image"], bgr)
    assert np.array_equal(DecodeImage("RGB")(sample(data))["image"], bgr[..., ::-1])
    assert DecodeImage("RGB", channel_first=True)(sample(data))["image"].shape == (3, *bgr.shape[:2])
    grey = DecodeImage("GRAY")(sample(data))["image"]
    assert grey.shape == bgr.shape and (grey[..., 0] == grey[..., 2]).all()
    turned = DecodeImage()(sample(FILES["rotated by exif"]))["image"]
    assert turned.shape[:2] == bgr.shape[1::-1]
    assert DecodeImage(ignore_orientation=True)(sample(FILES["rotated by exif"]))["image"].shape == bgr.shape


BROKEN = {
    "empty": b"",
    "text": b"no image at all",
    "half jpeg": FILES["jpeg"][: len(FILES["jpeg"]) // 2],
    "half png": FILES["png"][: len(FILES["png"]) // 2],
    "header only": FILES["jpeg"][:20],
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("op", [DecodeImagePIL(), DecodeImage(), DecodeImage("BGR")])
def test_broken_images_are_refused(name, op):
    with pytest.raises(UnreadableImage):
        op(sample(BROKEN[name]))


def test_decode_passes_arrays_through():
    image = picture(20, 10)
    assert DecodeImagePIL()(sample(image))["image"] is image


def test_buckets_round_half_to_even():
    assert bucket(np.array([0.2, 0.5, 1.5, 2.5, 3.5, 40.0]), 1, 12).tolist() == [1, 1, 2, 2, 4, 12]
    assert [bucket_size(q) for q in (1, 4, 5, 12)] == [BASE_SHAPE[0], (128, 32), (160, 32), (384, 32)]


@pytest.mark.parametrize("w, h", [(64, 32), (300, 32), (5, 60), (128, 32)])
@pytest.mark.parametrize("cls", [RecTVResize, SVTRResize])
def test_fixed_resize(cls, w, h):
    image = picture(w, h)
    shape = [32, 128] if cls is RecTVResize else [3, 32, 128]
    out = cls(image_shape=shape, padding=True)(sample(image))
    content = min(128, int(np.ceil(32 * w / h)))
    assert out["image"].shape == (3, 32, 128) and out["image"].dtype == np.float32
    assert (out["image"][:, :, content:] == 0).all() and np.abs(out["image"]).max() <= 1
    assert out["valid_ratio"] == content / 128 and out["real_ratio"] == max(1, round(w / h))
    full = cls(image_shape=shape, padding=False)(sample(image))
    assert full["valid_ratio"] == 1
    resized = (
        np.asarray(Image.fromarray(image).resize((128, 32), Image.Resampling.BICUBIC))
        if cls is RecTVResize
        else cv2.resize(image, (128, 32))
    )
    expected = (resized.astype(np.float32) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(full["image"], expected.transpose(2, 0, 1), atol=1e-7)


@pytest.mark.parametrize("w, h, width, content", [(640, 48, 640, 640), (100, 50, 320, 96), (333, 50, 320, 320)])
def test_dynamic_resize(w, h, width, content):
    registry._warned.clear()
    (op,) = create_operators([{"RecDynamicResize": {"image_shape": [48, 320], "padding": False}}])
    out = op(sample(picture(w, h)))
    assert out["image"].shape == (3, 48, width)
    assert (out["image"][:, :, content:] == 0).all() and out["valid_ratio"] == content / width


def test_slices():
    image = picture(512, 32)
    halves = SliceResize([3, 32, 128])
    first, second = (halves(sample(image, False, s))["image"] for s in (0, 1))
    assert first.shape == (3, 3, 32, 256) and np.array_equal(first, second)  # T44: not random in evaluation
    shapes = {halves(sample(image, True, s))["valid_ratio"] for s in range(5)}
    assert len(shapes) > 1
    assert SliceResize([3, 32, 128], padding=False)(sample(picture(200, 50)))["image"].shape == (3, 3, 48, 96)
    for w, n in ((512, 7), (100, 2), (32 * 9, 3)):
        windows = SliceTVResize()(sample(picture(w, 32)))["image"]
        assert windows.shape == (n, 3, 32, 128)
    assert np.array_equal(windows[0][:, :, 64:], windows[1][:, :, :64])


# -- augmentation -----------------------------------------------------------------------------------


def by_pillow(name, image, *args):
    from PIL import ImageEnhance, ImageOps

    pil = Image.fromarray(image)
    enhance = {"color": ImageEnhance.Color, "contrast": ImageEnhance.Contrast, "brightness": ImageEnhance.Brightness}
    if name in enhance:
        return np.asarray(enhance[name](pil).enhance(args[0]))
    return np.asarray(getattr(ImageOps, name)(pil, *args))


@pytest.mark.parametrize(
    "number, name, args",
    [
        (0, "autocontrast", ()), (1, "equalize", ()), (2, "invert", ()), (4, "posterize", (2,)),
        (5, "solarize", (128,)), (7, "color", (1.45,)), (8, "contrast", (1.45,)), (9, "brightness", (1.45,)),
    ],
)  # fmt: skip
def test_tone_operations_match_pillow(number, name, args):
    image = (picture(90, 40) * 0.6 + 30).astype(np.uint8)
    out = OPERATIONS[number](image, 0.2, 0.3, PIXEL_RNG)
    assert np.abs(out.astype(int) - by_pillow(name, image, *args).astype(int)).max() <= 2


def test_solarize_add():
    image = np.arange(256, dtype=np.uint8).reshape(1, 256, 1).repeat(3, 2)
    out = OPERATIONS[6](image, 0, 0, PIXEL_RNG)[0, :, 0]
    assert out[:128].tolist() == [v + 55 for v in range(128)] and out[128:].tolist() == list(range(128, 256))


@pytest.mark.parametrize("u, v", [(0.2, 0.2), (0.2, 0.8), (0.8, 0.2), (0.8, 0.8)])
def test_geometry_matches_pillow(u, v):
    image = cv2.GaussianBlur(picture(128, 32), (0, 0), 2)
    sign, how = (1 if u < 0.5 else -1), Image.Resampling.BILINEAR if v < 0.5 else Image.Resampling.BICUBIC
    pil, grey = Image.fromarray(image), (128, 128, 128)
    affine = {
        10: (1, 0.45 * sign, 0, 0, 1, 0), 11: (1, 0, 0, 0.1 * sign, 1, 0),
        12: (1, 0, 0.05 * sign * 128, 0, 1, 0), 13: (1, 0, 0, 0, 1, 0.15 * sign * 32),
    }  # fmt: skip
    for number, data in affine.items():
        expected = pil.transform(pil.size, Image.Transform.AFFINE, data, resample=how, fillcolor=grey)
        got = OPERATIONS[number](image, u, v, PIXEL_RNG)
        assert np.abs(got.astype(int) - np.asarray(expected)).mean() < 1, number
    turned = np.asarray(pil.rotate(15 * sign, expand=True, resample=how, fillcolor=grey))
    got = OPERATIONS[3](image, u, v, PIXEL_RNG)
    assert got.shape == turned.shape == (66, 132, 3)  # T7's example
    assert np.abs(got.astype(int) - turned).mean() < 1


def test_noise_and_blur():
    flat = np.full((60, 200, 3), 128, np.uint8)
    noise = OPERATIONS[15](flat, 0, 0, np.random.default_rng(1)).astype(int) - 128
    assert (noise[..., 0] == noise[..., 2]).all() and abs(noise.mean()) < 1
    assert abs(np.abs(noise).mean() - 21) < 0.5 and abs(np.abs(noise).std() - 21**0.5) < 0.3
    small = OPERATIONS[15](np.full((40, 26, 3), 128, np.uint8), 0, 0, np.random.default_rng(1)).astype(int) - 128
    assert abs(np.abs(small).mean() - 9) < 0.5  # 0.2 * 40 = 8, made odd
    impulse = np.zeros((41, 41, 3), np.uint8)
    impulse[20, 20] = 255
    assert 0 < OPERATIONS[14](impulse, 0, 0, PIXEL_RNG)[20, 21, 0] < 255


def test_three_operations_of_sixteen_with_probability_one_half(monkeypatch):
    calls = []
    ops = tuple((lambda image, u, v, rng, i=i: (calls.append(i), image)[1]) for i in range(16))
    monkeypatch.setattr(parseq_aug, "OPERATIONS", ops)
    rng, image, per_image = np.random.default_rng(0), picture(20, 10), []
    for _ in range(6000):
        calls.clear()
        PARSeqAugPIL()({"image": image, "rng": rng})
        assert len(set(calls)) == len(calls)
        per_image.append(list(calls))
    counts = np.bincount([i for c in per_image for i in c], minlength=16) / 6000
    np.testing.assert_allclose(counts, 3 / 16 / 2, atol=0.015)
    assert np.bincount([len(c) for c in per_image]) / 6000 == pytest.approx([1 / 8, 3 / 8, 3 / 8, 1 / 8], abs=0.02)


@pytest.mark.parametrize("shape", [(1, 1), (2, 300), (300, 2), (32, 128)])
def test_every_operation_takes_any_size(shape):
    image = PIXEL_RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    for op in OPERATIONS:
        for u in (0.1, 0.9):
            out = op(image, u, u, PIXEL_RNG)
            assert out.dtype == np.uint8 and out.ndim == 3 and out.shape[2] == 3


def test_augmentation_is_repeatable_and_leaves_its_input_alone():
    image = picture(60, 30)
    before = image.copy()
    for seed in range(40):
        first, second = (PARSeqAug()(sample(image, seed=seed))["image"] for _ in range(2))
        assert np.array_equal(first, second) and np.array_equal(image, before)
        assert PARSeqAug()(sample(image[..., 0].copy(), seed=seed))["image"].ndim == 2
    pickle.loads(pickle.dumps(PARSeqAugPIL()))  # T42


# -- building the list ------------------------------------------------------------------------------


def test_keep_keys():
    (op,) = create_operators([{"KeepKeys": {"keep_keys": ["image", "label"]}}])
    assert op({"image": 1, "label": 2, "rng": None}) == [1, 2]
    with pytest.raises(ConfigError, match=r"no transform makes 'length'. The transforms made: image"):
        create_operators([{"KeepKeys": {"keep_keys": ["image", "length"]}}])[0]({"image": 1})


def test_local_arguments_win_over_context():
    ops = create_operators([{"CTCLabelEncode": {"max_text_length": 99}}, "CTCLabelEncode"], max_text_length=7)
    assert [op.max_text_length for op in ops] == [99, 7]  # T33
    assert transform({"label": "a" * 20}, ops[:1])["length"] == 20
    with pytest.raises(SampleError):
        transform({"label": "a" * 20}, ops[1:])


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"KeepKey": None}, "KeepKeys"),
        ({"RecTVResize": {"image_shap": [32, 128]}}, "image_shape"),
        ({"RecTVResize": {"image_shape": [3, 32, 128]}}, "height, width"),
        ({"DecodeImage": {"img_mode": "RBG"}}, "img_mode"),
        ({"BDA": None}, "no op is called"),  # T27: registered there, but absent
        ({"A": 1, "B": 2}, "expected one op"),
        ({"PARSeqAug": [1]}, "mapping of arguments"),
        ({"KeepKeys": {"keep_keys": "image"}}, "expected a list"),
    ],
)
def test_bad_entries_are_named(entry, message):
    with pytest.raises(ConfigError, match=message):
        create_operators([entry])


def u_stream(n, stream):
    """The interface's pseudo-random source: 64-bit integer arithmetic."""
    with np.errstate(over="ignore"):
        i = np.arange(n, dtype=np.uint64)
        v = (np.uint64(2654435761) * i + np.uint64(40503 * stream + 12345)) % np.uint64(2**32)
        v ^= v >> np.uint64(16)
        v = (np.uint64(73244475) * v) % np.uint64(2**32)
        v ^= v >> np.uint64(16)
    return v / 2**32


@pytest.mark.parametrize(
    "w, h, q, shape, mean, std, first, last",
    [
        (50, 50, 1, (3, 64, 64), -0.004049, 0.469533, 0.129412, -0.254902),
        (120, 61, 2, (3, 48, 96), -0.001332, 0.370223, 0.223529, -0.388235),
        (101, 33, 3, (3, 40, 112), -0.001734, 0.466983, 0.152941, 0.176471),
        (200, 48, 4, (3, 32, 128), -0.002263, 0.307692, 0.019608, 0.490196),
        (331, 64, 5, (3, 32, 160), -0.001247, 0.231382, 0.450980, 0.254902),
    ],
)
def test_golden_resize(w, h, q, shape, mean, std, first, last):
    """OpenOCR's numbers (section 4.14 of its interface), Pillow 13."""
    from openrec.data.collate import collate
    from openrec.data.types import Sample

    np.testing.assert_allclose(u_stream(5, 0), [0.52616898, 0.50667783, 0.36756463, 0.44919742, 0.56400391], atol=1e-8)
    image = np.floor(256 * u_stream(h * w * 3, 4242)).astype(np.uint8).reshape(h, w, 3)
    assert int(bucket(w / h)) == q
    out = collate([Sample([resize_pil(image, *bucket_size(q))], "", "")]).tensors[0][0].double()
    assert tuple(out.shape) == shape
    got = [out.mean(), out.std(unbiased=False), out.flatten()[0], out.flatten()[-1]]
    np.testing.assert_allclose(got, [mean, std, first, last], atol=1.5e-6)
