"""From encoded image bytes to an array.

OpenCV decodes ordinary JPEG and 8-bit RGB PNG files to the same numbers as Pillow in a quarter of
the time; everything else (palettes, alpha, CMYK, 16 bit, GIF, ...) goes through Pillow.
"""

from __future__ import annotations

import io
import os
from typing import Any

import cv2
import numpy as np
from PIL import Image

from openrec.errors import ConfigError, SampleError

_RGB = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_PNG_RGB8 = b"\x08\x02"  # bit depth 8, colour type 2, at bytes 24 and 25
_PNG_END = b"IEND\xaeB`\x82"

# OpenCV would print a line to stderr for every broken file; the reports name them instead.
if hasattr(cv2, "setLogLevel") and "OPENCV_LOG_LEVEL" not in os.environ:
    cv2.setLogLevel(2)


class UnreadableImage(SampleError):
    """The image's bytes are missing or cannot be decoded."""


def decode_rgb(data: bytes) -> np.ndarray:
    """uint8 RGB ``[H, W, 3]`` of an encoded image, EXIF orientation not applied.

    Raises:
        UnreadableImage: empty, truncated or not an image.
    """
    if not data:
        raise UnreadableImage("image is empty")
    if _plain_jpeg(data) or (data[24:26] == _PNG_RGB8 and data[1:4] == b"PNG" and data[-8:] == _PNG_END):
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), _RGB)
        except cv2.error:
            image = None
        if image is not None:
            return image
    return np.asarray(decode_pil(data).convert("RGB"))


def _plain_jpeg(data: bytes) -> bool:
    # An Adobe marker may mean CMYK; a missing end marker means truncation, which OpenCV would
    # fill with grey and not report.
    return data[:2] == b"\xff\xd8" and data[-2:] == b"\xff\xd9" and b"Adobe" not in data[:1024]


def decode_pil(data: bytes) -> Image.Image:
    """A loaded Pillow image.

    Raises:
        UnreadableImage: empty, truncated or not an image.
    """
    if not data:
        raise UnreadableImage("image is empty")
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        kind = "truncated" if "truncated" in str(error) else "cannot be decoded"
        raise UnreadableImage(f"image {kind}") from error
    return image


def image_size(data: bytes) -> tuple[int, int]:
    """``(width, height)`` in pixels from the header alone.

    Raises:
        UnreadableImage: not an image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableImage("image cannot be decoded") from error


class DecodeImagePIL:
    """uint8 RGB ``[H, W, 3]`` as Pillow's ``convert("RGB")`` would give; EXIF orientation is ignored.

    Args:
        img_mode: ``RGB``, ``BGR`` (channels reversed) or ``Gray`` (``[H, W]``, ITU-R 601 luma).
    """

    keeps_boxes = True  # rendered pictures pass through

    def __init__(self, img_mode: str = "RGB") -> None:
        if img_mode not in ("RGB", "BGR", "Gray"):
            raise ConfigError(f"DecodeImagePIL.img_mode: expected RGB, BGR or Gray, got {img_mode!r}.")
        self.img_mode = img_mode

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        image = sample["image"]
        if isinstance(image, np.ndarray):  # decoded already: rendered, or the grey stand-in
            return sample
        if self.img_mode == "Gray":
            sample["image"] = np.asarray(decode_pil(image).convert("L"))
            return sample
        rgb = decode_rgb(image)
        sample["image"] = rgb if self.img_mode == "RGB" else np.ascontiguousarray(rgb[..., ::-1])
        return sample


class DecodeImage:
    """uint8 ``[H, W, 3]`` decoded by OpenCV (blue first), reversed for ``img_mode="RGB"``.

    Args:
        img_mode: ``RGB`` or ``BGR``; ``GRAY`` gives three equal channels.
        channel_first: return ``[3, H, W]``.
        ignore_orientation: leave the EXIF orientation unapplied.
    """

    keeps_boxes = True

    def __init__(self, img_mode: str = "RGB", channel_first: bool = False, ignore_orientation: bool = False) -> None:
        if img_mode not in ("RGB", "BGR", "GRAY"):
            raise ConfigError(f"DecodeImage.img_mode: expected RGB, BGR or GRAY, got {img_mode!r}.")
        self.img_mode, self.channel_first = img_mode, channel_first
        self.flags = cv2.IMREAD_COLOR_RGB if img_mode == "RGB" else cv2.IMREAD_COLOR
        if ignore_orientation:
            self.flags |= cv2.IMREAD_IGNORE_ORIENTATION

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        image = sample["image"]
        if not isinstance(image, np.ndarray):
            image = self._decode(image)
        if self.channel_first:
            image = np.ascontiguousarray(image.transpose(2, 0, 1))
        sample["image"] = image
        return sample

    def _decode(self, data: bytes) -> np.ndarray:
        if not data:
            raise UnreadableImage("image is empty")
        if data[:2] == b"\xff\xd8" and data[-2:] != b"\xff\xd9":
            decode_pil(data)  # raises when truncated, which OpenCV would fill with grey
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), self.flags)
        except cv2.error:
            image = None
        if image is None:
            rgb = decode_rgb(data)  # formats that OpenCV lacks, or the reason why not
            image = rgb if self.img_mode == "RGB" else np.ascontiguousarray(rgb[..., ::-1])
        if self.img_mode == "GRAY":
            image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
        return image
