"""What a recogniser can be given: files, folders, globs, arrays, Pillow images, bytes."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from openrec.errors import DataError, SampleError
from openrec.preprocess.decode import UnreadableImage, image_size

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".rgb")
MAX_PIXELS = 25_000_000  # a crop of one word never has as many; a photo of 50 megapixels takes 150 MB

# Pillow's own limit only warns; ``max_pixels`` refuses, with a message for each picture.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class Source(NamedTuple):
    """One picture, not yet read: its name for messages, and a path, bytes, array or Pillow image."""

    name: str
    content: Any


def sources(images: Any) -> list[Source]:
    """Every picture that ``images`` stands for, in order; names only, nothing is opened.

    Args:
        images: a path, a folder (its pictures and those of its sub-folders, sorted), a glob such as ``crops/**/*.png``,
            a uint8 array ``[H, W, 3]`` / ``[H, W]`` / ``[B, H, W, 3]``, a Pillow image, encoded bytes, or any
            sequence of these. A file that is named and missing is no error here: it fails by itself, when it is read.

    Raises:
        DataError: a folder without pictures, a glob that matches nothing, a thing that is no picture.
    """
    if isinstance(images, np.ndarray) and images.ndim == 4:
        images = list(images)
    one = (str, bytes, bytearray, os.PathLike, Source)  # a Source is a tuple, and one picture
    several = isinstance(images, Iterable) and not isinstance(images, one)
    if not several or isinstance(images, np.ndarray):
        images = [images]
    found: list[Source] = []
    for item in images:
        found += _expand(item, len(found))
    return found


def _expand(item: Any, number: int) -> list[Source]:
    if isinstance(item, (str, os.PathLike)):
        return [Source(path, path) for path in _paths(os.fspath(item))]
    if isinstance(item, Source):
        return [item]
    if isinstance(item, (np.ndarray, Image.Image, bytes, bytearray)):
        return [Source(getattr(item, "filename", "") or f"image {number}", item)]
    raise DataError(
        f"image {number}: expected a path, a folder, a glob, a NumPy array, a Pillow image or bytes, got "
        f"{type(item).__name__}."
    )


def _paths(path: str) -> list[str]:
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        inside = sorted(str(p) for p in Path(path).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not inside:
            raise DataError(f'"{path}" holds no picture (looked for {", ".join(SUFFIXES)}, sub-folders too).')
        return inside
    if not os.path.lexists(path) and glob.has_magic(path):
        inside = sorted(p for p in glob.glob(path, recursive=True) if os.path.isfile(p))
        if not inside:
            raise DataError(f'no file matches "{path}" (working directory: {os.getcwd()}).')
        return inside
    return [path]


def open_source(source: Source, max_pixels: int = MAX_PIXELS, color: str = "RGB") -> tuple[Any, tuple[int, int]]:
    """``(bytes or RGB array, (width, height))`` of a picture.

    Args:
        max_pixels: a larger picture is refused before it is decoded.
        color: order of the channels of arrays: ``RGB``, or ``BGR`` as OpenCV has them.

    Raises:
        SampleError: missing file, not a picture, too large; the message is for the user.
    """
    content = source.content
    if isinstance(content, (str, os.PathLike)):
        content = _read_file(os.fspath(content))
    if isinstance(content, (bytes, bytearray)):
        if not content:
            raise UnreadableImage("file is empty")
        try:
            size = image_size(bytes(content))
        except UnreadableImage as error:
            if isinstance(error.__cause__, Image.DecompressionBombError):
                raise SampleError("image is far too large; cut out the word or the line") from error
            raise
        _refuse_large(size, max_pixels)
        return bytes(content), size
    if isinstance(content, Image.Image):
        _refuse_large(content.size, max_pixels)
        try:
            return np.asarray(content.convert("RGB")), content.size
        except (OSError, ValueError, SyntaxError) as error:
            raise UnreadableImage("image cannot be decoded") from error
    array = _as_rgb(content, color)
    size = (array.shape[1], array.shape[0])
    _refuse_large(size, max_pixels)
    return array, size


def _read_file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        reason = "file not found" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        raise SampleError(reason) from error


def _refuse_large(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if not width or not height:
        raise SampleError("image has no pixels")
    if width * height > max_pixels:
        raise SampleError(
            f"image has {width * height / 1e6:.1f} megapixels ({width} x {height}), more than the limit of "
            f"{max_pixels / 1e6:g}; cut out the word or the line, or raise max_pixels"
        )


def _as_rgb(array: Any, color: str) -> np.ndarray:
    """uint8 ``[H, W, 3]``, red first."""
    if not isinstance(array, np.ndarray):
        raise SampleError(f"expected a picture, got {type(array).__name__}")
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise SampleError(f"expected a uint8 array [H, W] or [H, W, 3], got {array.dtype} {list(array.shape)}")
    if array.ndim == 2 or array.shape[2] == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, 2)
    array = array[..., :3]
    return np.ascontiguousarray(array[..., ::-1] if color == "BGR" else array)


def chunked(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Consecutive pieces of ``size``; the last one may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
