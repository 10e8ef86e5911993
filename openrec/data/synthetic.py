"""``SyntheticWords``: a data set whose images are rendered while they are read.

    Train:
      dataset:
        name: SyntheticWords
        size: 100000          # words per epoch
        language: en          # en, ko, zh, or random for strings of any left-to-right script
        max_length: 8
        transforms: [RecTVResize: {image_shape: [32, 128]}, CTCLabelEncode: , KeepKeys: {...}]

Photographed words are mixed in with ``real: path/to/lmdb`` (one directory or several) and ``real_share: 0.3``.

A sample depends on (seed, epoch, index) and the fonts and word lists of the machine. Training sees new
words in every epoch, evaluation the same ones always. Unless ``split`` says otherwise, Train and Eval
draw from disjoint parts of all texts, so that every evaluated word is one that was never trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from openrec.charset import Charset
from openrec.data.base import WordDataset
from openrec.data.lmdb_dataset import LmdbWords
from openrec.data.lmdb_env import leaf_environments
from openrec.data.render import RenderedWord, WordRenderer
from openrec.data.report import SourceReport
from openrec.data.types import Pick
from openrec.errors import ConfigError, DataError, SampleError
from openrec.preprocess import geometry
from openrec.preprocess.decode import UnreadableImage, decode_rgb

SPLITS = ("auto", "train", "test", "all")
# Spread of width / height over crops of scene text: log-normal, median and sigma of the logarithm.
ASPECT_MEDIAN, ASPECT_SIGMA = 2.2, 0.45


def _in_parts(word: RenderedWord) -> np.ndarray:
    """The characters' boxes as (cx, cy, w, h) in parts of the picture."""
    left_top, right_bottom = word.boxes[:, :2], word.boxes[:, 2:]
    size = np.array(word.size * 2, np.float32)
    return np.concatenate(((left_top + right_bottom) / 2, right_bottom - left_top), 1) / size


class SyntheticWords(WordDataset):
    """Rendered words. They know where every character is: ``CharDetLabelEncode`` gets the boxes.

    With ``by_ratio`` the samples are spread over ratio buckets and resized to a bucket's size just before
    ``KeepKeys``, as ``RatioDataSetTVResize`` does without padding: for ``RatioSampler``. Otherwise a resize among the
    transforms gives all images one size.

    Args:
        transforms: end with ``KeepKeys``; the image is decoded already, ``DecodeImage*`` pass it through.
        size: words per epoch.
        language: ``en``, ``ko``, ``zh`` or ``random``.
        words: null: the system's word list and a built-in model; ``model``; ``random``; or word files (UTF-8, one
            a line), whose words are written as they stand.
        fonts: null: the system's fonts; else font files, directories, family names, ``system``.
        min_length, max_length: characters per text; ``max_length`` defaults to ``Global.max_text_length`` or 25.
        split: part of all texts, by hash: ``train``, ``test`` (one text in ten), ``all``; ``auto``: that of the mode.
        font_split: the same for font families (``test``: one in five); null: all families.
        height: range of rendered heights, px.
        strength: 0..1, scales distortion and decay.
        random_share: part of texts that are random strings.
        without: parts of the renderer to leave out, see ``openrec.data.render.switches``.
        rotation, curvature: [least, most] degrees by which every word is turned, and of the arc along which it bends,
            either way; null: few words, and slightly.
        real: directories of LMDBs with photographed words, for training; ``real_share``: part of the samples that
            are taken from there, drawn at random for every epoch. With ``by_ratio`` only pictures that fit the bucket.
        by_ratio: see above.
        base_shape, base_h, min_ratio, max_ratio: see ``RatioDataSetTVResize``; the last two belong to the loader.
        seed: of the data set; by default that of the run.
        mode, charset, global_config: see ``WordDataset``.

    Raises:
        ConfigError: no font for the charset (the message names a package), no text possible, wrong values.
    """

    gives_boxes = True

    def __init__(
        self,
        transforms: Sequence[Any],
        size: int = 100_000,
        language: str = "en",
        words: str | Sequence[str] | None = None,
        fonts: str | Sequence[str] | None = None,
        min_length: int = 1,
        max_length: int | None = None,
        split: str = "auto",
        font_split: str | None = None,
        height: Sequence[int] = (20, 64),
        strength: float = 1.0,
        random_share: float = 0.08,
        real: str | Sequence[str] | None = None,
        real_share: float = 0.25,
        by_ratio: bool = False,
        base_shape: Sequence[Sequence[int]] | None = None,
        base_h: int = geometry.BASE_H,
        *,
        rotation: Sequence[float] | None = None,
        curvature: Sequence[float] | None = None,
        without: str | Sequence[str] | None = None,
        min_ratio: int = 1,
        max_ratio: int = 10,
        mode: str = "Train",
        seed: int = 0,
        charset: Charset | None = None,
        global_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(transforms, mode=mode, seed=seed, charset=charset, global_config=global_config)
        where = f"{mode}.dataset"
        if size < 1:
            raise ConfigError(f"{where}.size: expected a positive number of words per epoch, got {size!r}.")
        if split not in SPLITS:
            raise ConfigError(f"{where}.split: expected one of {', '.join(SPLITS)}; got {split!r}.")
        self.n, self.split = int(size), {"auto": "train" if self.training else "test"}.get(split, split)
        self.renderer = WordRenderer(
            self.charset,
            language,
            fonts=fonts,
            words=words,
            min_length=min_length,
            max_length=self._longest(max_length, where),
            height=height,
            word_split=None if self.split == "all" else self.split,
            font_split=font_split,
            strength=strength,
            random_share=random_share,
            rotation=rotation,
            curvature=curvature,
            without=without,
        )
        self.real: LmdbWords | None = None
        self.real_share = real_share
        if real:
            self.real = self._photographs([real] if isinstance(real, str) else real, transforms, global_config)
        self.base_shape, self.base_h = geometry.check_base_shape(base_shape, where), int(base_h)
        if by_ratio:
            self.buckets = self._spread(int(min_ratio), int(max_ratio), where)
        if self.real is not None and self.buckets is not None:
            fits = geometry.bucket(self.real.ratio, int(min_ratio), int(max_ratio))
            self._real_of = {int(q): np.flatnonzero(fits == q) for q in np.unique(fits)}
        self._report()

    def _photographs(self, folders: Sequence[str], transforms: Sequence[Any], global_config: Any) -> LmdbWords:
        where = f"{self.mode}.dataset"
        if not self.training:
            raise ConfigError(f"{where}.real: photographed words are mixed into training; evaluate them on their own.")
        if not 0 < self.real_share < 1:
            raise ConfigError(f"{where}.real_share: expected a share between 0 and 1, got {self.real_share}.")
        paths = [path for folder in folders for path in leaf_environments(folder)]
        options = {"seed": self.seed, "charset": self.charset, "global_config": global_config}
        found = LmdbWords(paths, transforms, with_ratio=True, **options)
        if not len(found):
            raise DataError(
                f"{where}.real: no usable word in {', '.join(folders)}.\n" + "\n".join(found.report.lines())
            )
        return found

    def _longest(self, max_length: int | None, where: str) -> int:
        limit = self.max_text_length
        if max_length is None:
            return int(limit or 25)
        if limit and max_length > limit:
            raise ConfigError(
                f"{where}.max_length: {max_length} is more than Global.max_text_length ({limit}), so the label encoder "
                "would refuse the longer words. Lower the one or raise the other."
            )
        return int(max_length)

    def _spread(self, low: int, high: int, where: str) -> np.ndarray:
        """A ratio bucket for every index, the same in all epochs, so that batches do not change in number."""
        if not 1 <= low <= high:
            raise ConfigError(f"{where}: expected 1 <= min_ratio <= max_ratio of the loader, got {low} and {high}.")
        rng = np.random.default_rng([self.seed, self.n])
        ratio = np.exp(rng.normal(np.log(ASPECT_MEDIAN), ASPECT_SIGMA, self.n))
        # Short texts would float in a wide picture.
        widest = max(low, round(self.renderer.source.max_length * (1.0 if self.renderer.cjk else 0.7)))
        return geometry.bucket(ratio, low, min(high, widest))

    def _report(self) -> None:
        self.report.found = self.report.used = self.n
        part = "all texts" if self.split == "all" else f'texts of the "{self.split}" part'
        self.report.sources.append(SourceReport(f"rendered, {part}", self.n, self.n))
        if self.real is not None:
            share = f"{100 * self.real_share:.0f} % of the samples"
            self.report.notes.append(f"photographed words: {len(self.real)}, {share}")
            self.report.skipped, self.report.names = self.real.report.skipped, self.real.report.names
        self.report.notes += self.renderer.summary()
        if self.buckets is not None:
            counts = np.bincount(self.buckets)
            self.report.notes.append("by ratio bucket: " + ", ".join(f"{q}: {n}" for q, n in enumerate(counts) if n))

    def __len__(self) -> int:
        return self.n

    def render(self, index: int, rng: np.random.Generator) -> RenderedWord:
        """The word of ``index`` with its boxes and font, before any transform."""
        aspect = None
        if self.buckets is not None:
            q = int(self.buckets[index])
            aspect = (max(0.6, q - 0.5), q + 0.5)
        return self.renderer.render(rng, aspect=aspect)

    def read(self, index: int, rng: np.random.Generator) -> tuple[Any, ...]:
        if self.real is not None and rng.random() < self.real_share:
            members = np.arange(len(self.real)) if self.buckets is None else self._real_of.get(int(self.buckets[index]))
            if members is not None:
                return self._read_photograph(int(members[rng.integers(len(members))]), rng)
        word = self.render(index, rng)
        return (word.image, word.text, _in_parts(word)) if self.wants_boxes else (word.image, word.text)

    def _read_photograph(self, index: int, rng: np.random.Generator) -> tuple[Any, str]:
        assert self.real is not None
        data, text = self.real.read(index, rng)
        try:
            return decode_rgb(data), text
        except UnreadableImage as error:  # the sample's own name tells nothing about the photograph
            raise SampleError(f"{self.real.name(index)}: {error}") from error

    def text(self, index: int) -> str:
        return self.render(index, self._random(0, index)).text

    def name(self, index: int) -> str:
        return f"rendered/{self.split}:{index}"

    def fit(self, sample: dict[str, Any], pick: Pick) -> dict[str, Any]:
        if self.buckets is None:
            return sample
        image = geometry.as_array(sample["image"])
        height, width = image.shape[:2]
        size = geometry.bucket_size(pick.ratio or int(self.buckets[pick.index]), self.base_shape, self.base_h)
        sample["image"] = geometry.resize_pil(image, *size)
        sample["valid_ratio"], sample["real_ratio"] = 1.0, max(1, round(width / height))
        sample["gen_ratio"] = size[0] // size[1]
        return sample
