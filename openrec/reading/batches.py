"""Pictures of one size share a batch; only those of the batches under way are in memory."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np

from openrec.errors import OpenRecError, SampleError
from openrec.metrics.text_pairs import merge_windows
from openrec.postprocess.base import Decoded
from openrec.preprocess import geometry
from openrec.reading.inputs import Source, open_source
from openrec.reading.preprocessing import Preprocessor

logger = logging.getLogger("openrec")

_WAITING = 16  # batches of incomplete sizes that may wait; matters where every picture has a width of its own


class Item(NamedTuple):
    """A prepared picture; ``image`` and ``valid`` as in ``Prepared``, ``size`` (width, height) px of the original."""

    number: int
    name: str
    size: tuple[int, int]
    image: np.ndarray
    valid: float


class Failed(NamedTuple):
    """A picture that cannot be read, and why."""

    number: int
    name: str
    size: tuple[int, int] | None
    reason: str


class Group(NamedTuple):
    """A batch of one size, and what failed on the way to it."""

    items: list[Item]
    failed: list[Failed]


class Prepare:
    """Opens and prepares one picture; never raises for a bad one."""

    def __init__(self, preprocess: Preprocessor, color: str, max_pixels: int) -> None:
        self.preprocess, self.color, self.max_pixels = preprocess, color, max_pixels

    def __call__(self, index: int, source: Source) -> Item | Failed:
        size = None
        try:
            content, size = open_source(source, self.max_pixels, self.color)
            prepared = self.preprocess(content)
        except SampleError as error:
            return Failed(index, source.name, size, str(error))
        except OpenRecError:
            raise
        except (MemoryError, cv2.error) as error:
            return Failed(index, source.name, size, f"cannot be decoded or resized ({type(error).__name__})")
        except Exception as error:  # decoders of damaged files raise all sorts of things; one file must not end a run
            logger.debug("while reading %s", source.name, exc_info=True)
            return Failed(index, source.name, size, f"cannot be read ({type(error).__name__}: {error})")
        return Item(index, source.name, size, prepared.image, prepared.valid)


def grouped(
    sources: Sequence[Source], prepare: Callable[[int, Source], Item | Failed], batch_size: int, workers: int = 0
) -> Iterator[Group]:
    """Batches of at most ``batch_size`` pictures of one size, in the order in which they become complete."""
    waiting: dict[tuple[int, ...], list[Item]] = {}
    count = 0
    for item in _prepared(sources, prepare, workers):
        if isinstance(item, Failed):
            yield Group([], [item])
            continue
        key = (*item.image.shape, item.number if item.image.ndim == 4 else -1)  # windows of a line stay by themselves
        members = waiting.setdefault(key, [])
        members.append(item)
        count += 1
        if len(members) >= batch_size or item.image.ndim == 4:
            full = key
        elif count >= _WAITING * batch_size:
            full = max(waiting, key=lambda k: len(waiting[k]))
        else:
            continue
        count -= len(waiting[full])
        yield Group(waiting.pop(full), [])
    for members in waiting.values():
        yield Group(members, [])


def _prepared(
    sources: Sequence[Source], prepare: Callable[[int, Source], Item | Failed], workers: int
) -> Iterator[Item | Failed]:
    """Prepared pictures in order; with ``workers`` threads a few are made ahead."""
    if workers < 1:
        yield from (prepare(index, source) for index, source in enumerate(sources))
        return
    with ThreadPoolExecutor(workers, "openrec-read") as pool:
        ahead: deque = deque()
        try:
            for index, source in enumerate(sources):
                ahead.append(pool.submit(prepare, index, source))
                if len(ahead) >= 8 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def stack(items: Sequence[Item]) -> np.ndarray:
    """float32 ``[B, C, H, W]`` in [-1, 1], the numbers that training and evaluation see."""
    images = np.stack([item.image for item in items]) if items[0].image.ndim < 4 else items[0].image
    if images.dtype != np.uint8:
        return np.ascontiguousarray(images, np.float32)
    values = geometry.NORMALIZED[images]
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2)) if values.ndim == 4 else values[:, None]


def joined(windows: list[Decoded]) -> Decoded:
    """One text from overlapping windows of a line; a decoder that joined them itself gives one already."""
    if len(windows) == 1:
        return windows[0]
    scores = [s for w in windows for s in w.char_scores]
    mean = float(np.mean(scores)) if scores else 0.0
    return Decoded(merge_windows([w.text for w in windows]), mean, [], [])
