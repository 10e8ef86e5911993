"""What all data sets of images with labels have in common.

A data set yields the same sample for the same (seed, epoch, index), in whichever process it is made.
In training, labels that no encoder accepts are found when the data set is built, named in its
report and left out; images that turn out to be broken become ``Skipped``. In evaluation every
record is served: a label the encoder refuses is replaced by a dummy in the tensors only, a broken
image by a grey one, and the sample says so.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from openrec.charset import Charset
from openrec.data.report import DataReport
from openrec.data.types import Pick, Sample, Skipped
from openrec.errors import ConfigError, SampleError
from openrec.preprocess import create_operators
from openrec.preprocess.decode import UnreadableImage
from openrec.preprocess.keep_keys import KeepKeys

logger = logging.getLogger("openrec")

# Keys of ``Global`` that fill arguments which an op leaves open.
OP_CONTEXT = ("character_dict_path", "use_space_char", "max_text_length")
_SUBSET_STREAM = 1 << 63  # keeps the generator of an epoch's subset apart from those of its samples


class SampleRandom:
    """Generators for (epoch, index), keyed by the seed; one object, re-keyed, because making one is slow."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.Philox(key=np.array([seed & (2**64 - 1), 0], np.uint64))
        self._start = self._bits.state
        self._generator = np.random.Generator(self._bits)

    def __call__(self, epoch: int, index: int) -> np.random.Generator:
        self._start["state"]["key"][1] = (epoch << 40) + index
        self._bits.state = self._start
        return self._generator


class WordDataset(Dataset):
    """Base of the data sets. A subclass sets ``report`` and defines ``__len__``, ``read`` and ``name``.

    Args:
        transforms: the YAML list; ``KeepKeys`` comes last and keeps ``image`` first.
        mode: ``Train`` or ``Eval``.
        seed: of the run.
        charset: of the run; the label encoders get it.
        global_config: the config's ``Global``.

    Attributes:
        buckets: ratio bucket of every index (int64), or None where images have one size.
    """

    buckets: np.ndarray | None = None
    gives_boxes = False  # whether ``read`` can tell where every character is

    def __init__(
        self,
        transforms: Sequence[Any],
        *,
        mode: str = "Train",
        seed: int = 0,
        charset: Charset | None = None,
        global_config: Mapping[str, Any] | None = None,
    ) -> None:
        if mode not in ("Train", "Eval"):
            raise ConfigError(f'mode: expected "Train" or "Eval", got {mode!r}.')
        self.mode, self.training, self.seed = mode, mode == "Train", int(seed)
        context: dict[str, Any] = {k: v for k, v in (global_config or {}).items() if k in OP_CONTEXT}
        if charset is not None:
            context["charset"] = charset
        ops = create_operators(transforms, f"{mode}.dataset.transforms", **context)
        if not ops or not isinstance(ops[-1], KeepKeys) or ops[-1].keep_keys[0] != "image":
            raise ConfigError(
                f"{mode}.dataset.transforms: the last entry must be KeepKeys with image as its first key."
            )
        self.keep, self.ops = ops[-1], ops[:-1]
        self.encoders: list[Any] = [
            op for op in self.ops if hasattr(op, "refuses") or type(op).__name__.endswith("LabelEncode")
        ]
        self.wants_boxes = self._check_boxes()
        self.charset = (
            charset
            if charset is not None
            else next((op.charset for op in self.encoders if getattr(op, "charset", None) is not None), None)
        )
        self.max_text_length = context.get("max_text_length")
        self.report = DataReport()
        self.excluded: dict[int, str] = {}  # evaluation: index -> why OpenOCR would not score it
        self._strata: list[tuple[np.ndarray, int]] | None = None
        self._random = SampleRandom(self.seed)
        self._dummy = self._dummy_label()
        self._known: set[str] | None = None

    def _check_boxes(self) -> bool:
        """Whether boxes go with the images: some op wants them and the data set has them."""
        wanting: list[Any] = [op for op in self.ops if getattr(op, "wants_boxes", False)]
        if wanting and not self.gives_boxes and self.training and any(op.needs_boxes for op in wanting):
            raise ConfigError(
                f"{self.mode}.dataset: {type(self).__name__} does not know where the characters are, but "
                f"{type(wanting[0]).__name__} needs their boxes. Use SyntheticWords; or learn from texts alone: "
                "boxes: none there, and Loss.mode: ctc with a detector as Global.pretrained_model; or boxes: optional "
                "and Loss.mode: joint."
            )
        if not wanting or not self.gives_boxes:
            return False
        for number, op in enumerate(self.ops):
            if not getattr(op, "keeps_boxes", False):
                raise ConfigError(
                    f"{self.mode}.dataset.transforms[{number}]: {type(op).__name__} changes the image and leaves the "
                    "characters' boxes where they were. Leave it out (SyntheticWords distorts its words itself, see "
                    "strength, rotation, curvature), or resize with RecTVResize, SVTRResize or RecDynamicResize."
                )
        return True

    # -- what a subclass defines -------------------------------------------------------------------

    def read(self, index: int, rng: np.random.Generator) -> tuple[Any, ...]:
        """``(image, label)``: encoded bytes, or a uint8 RGB array. With ``wants_boxes`` a third value may follow:
        float32 [characters, 4], each box (cx, cy, w, h) in parts of the image.

        Raises:
            UnreadableImage, SampleError: the record cannot be used.
        """
        raise NotImplementedError

    def text(self, index: int) -> str:
        """The raw label; evaluation asks for it where ``read`` fails."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        """Where the record comes from."""
        raise NotImplementedError

    def label_for_tensors(self, text: str) -> str:
        """The label that is encoded; ``Sample.text`` stays raw."""
        return text

    def fit(self, sample: dict[str, Any], pick: Pick) -> dict[str, Any]:
        """The data set's own resize, between the transforms and ``KeepKeys``."""
        return sample

    # -- items -------------------------------------------------------------------------------------

    def __getitem__(self, pick: Pick | int) -> Sample | Skipped:
        if not isinstance(pick, Pick):
            pick = Pick(int(pick))
        if not 0 <= pick.index < len(self):  # type: ignore[arg-type]
            raise IndexError(f"index {pick.index} of {len(self)} samples")  # type: ignore[arg-type]
        try:
            return self._training_item(pick) if self.training else self._evaluation_item(pick)
        except Exception:
            logger.error("while making sample %s", self.name(pick.index))
            raise

    def _training_item(self, pick: Pick) -> Sample | Skipped:
        rng = self._random(pick.epoch, pick.index)
        try:
            image, text, *boxes = self.read(pick.index, rng)
            sample = {"image": image, "label": text, "rng": rng, "training": True, **_named(boxes)}
            values = self._apply(sample, pick)
        except SampleError as error:
            return Skipped(self.name(pick.index), str(error), pick.weight)
        return Sample(values, text, self.name(pick.index), None, False, pick.weight)

    def _evaluation_item(self, pick: Pick) -> Sample:
        excluded, unreadable = self.excluded.get(pick.index), False
        boxes: list[Any] = []
        rng = self._random(pick.epoch, pick.index)
        try:
            image, text, *boxes = self.read(pick.index, rng)
        except SampleError:
            image, text, unreadable = self._grey(pick), self.text(pick.index), True
        label = self.label_for_tensors(text)
        if self._refusal(label) is not None:
            label = self._dummy
        for _ in range(3):
            try:
                sample = {"image": image, "label": label, "rng": rng, "training": False, **_named(boxes)}
                values = self._apply(sample, pick)
                return Sample(values, text, self.name(pick.index), excluded, unreadable, pick.weight)
            except UnreadableImage:
                image, unreadable = self._grey(pick), True
            except SampleError as error:
                label, excluded = self._dummy, excluded or str(error)
        raise ConfigError(
            f"{self.mode}.dataset.transforms: some transform refuses even a grey image with the label {self._dummy!r}."
        )

    def _apply(self, sample: dict[str, Any], pick: Pick) -> list[Any]:
        for op in self.ops:
            sample = op(sample)
            if sample is None:
                raise SampleError(f"{type(op).__name__} returned nothing")
        return self.keep(self.fit(sample, pick))

    def _grey(self, pick: Pick) -> np.ndarray:
        q = pick.ratio or (int(self.buckets[pick.index]) if self.buckets is not None else 4)
        return np.full((32, 32 * q, 3), 128, np.uint8)

    # -- labels ------------------------------------------------------------------------------------

    def _refusal(self, text: str) -> str | None:
        """Why the label encoders refuse ``text``, or None."""
        if not text:
            return "label is empty"
        for op in self.encoders:
            if hasattr(op, "refuses"):
                reason = op.refuses(text)
                if reason is not None:
                    return reason
                continue
            try:
                if op({"label": text, "rng": np.random.default_rng(0), "training": True}) is None:
                    return f"{type(op).__name__} refuses the label"
            except SampleError as error:
                return str(error)
        return None

    def _dummy_label(self) -> str:
        characters = self.charset.characters if self.charset is not None else ("0", "a")
        return next((c for c in characters[:200] if self._refusal(c) is None), characters[0] if characters else "0")

    def judge(self, text: str) -> str | None:
        """Why the label ``text`` would not be trained on, or not be scored under OpenOCR's rule; counts characters
        outside the charset on the way."""
        if self.charset is not None:
            if self._known is None:
                known = "".join(self.charset.characters)
                self._known = set(known + known.upper() if self.charset.lower else known)
            if not self._known.issuperset(text):
                self.report.unknown.update(c for c in text if c not in self._known)
        return self._refusal(text)

    # -- subsets -----------------------------------------------------------------------------------

    def use_fractions(self, source: np.ndarray, fractions: Sequence[float]) -> None:
        """Serve only a part of some sources in every epoch.

        The part is drawn anew for every epoch from (seed, epoch) and takes its share of every ratio
        bucket, so that all epochs have the same number of batches.

        Args:
            source: source number of every index.
            fractions: share of each source, 0 to 1.
        """
        if all(f == 1 for f in fractions):
            return
        self._strata = []
        for number, fraction in enumerate(fractions):
            members = np.flatnonzero(source == number)
            groups = (
                [members]
                if self.buckets is None
                else [members[self.buckets[members] == q] for q in np.unique(self.buckets[members])]
            )
            counts = _shares([len(g) for g in groups], fraction)
            self._strata += list(zip(groups, counts))

    def epoch_indices(self, epoch: int) -> np.ndarray:
        """The indices served in ``epoch`` (ascending); in evaluation the same ones always."""
        if self._strata is None:
            return np.arange(len(self))  # type: ignore[arg-type]
        key = np.array([self.seed & (2**64 - 1), _SUBSET_STREAM + (epoch if self.training else 0)], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        parts = [g if n == len(g) else rng.choice(g, n, replace=False, shuffle=False) for g, n in self._strata]
        return np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.int64)

    @property
    def samples_per_epoch(self) -> int:
        return len(self) if self._strata is None else sum(n for _, n in self._strata)  # type: ignore[arg-type]


def _named(boxes: Sequence[Any]) -> dict[str, Any]:
    return {"boxes": boxes[0].copy()} if boxes else {}


def _shares(sizes: Sequence[int], fraction: float) -> list[int]:
    """``int(fraction * sum)`` split over groups in proportion to their sizes (largest remainders)."""
    total = int(fraction * sum(sizes) + 1e-9)
    exact = [fraction * n for n in sizes]
    counts = [int(e + 1e-9) for e in exact]
    for i in sorted(range(len(sizes)), key=lambda i: counts[i] - exact[i])[: total - sum(counts)]:
        counts[i] += 1
    return counts


def check_fractions(ratio_list: float | Sequence[float], n: int, where: str) -> list[float]:
    """``ratio_list`` as one fraction per source.

    Raises:
        ConfigError: wrong length, or a fraction outside 0..1.
    """
    fractions = [ratio_list] * n if isinstance(ratio_list, (int, float)) else list(ratio_list)
    if len(fractions) == 1:
        fractions *= n
    if len(fractions) != n:
        raise ConfigError(f"{where}.ratio_list: expected one number, or one for each of {n} sources, got {ratio_list}.")
    if not all(isinstance(f, (int, float)) and 0 <= f <= 1 for f in fractions):
        raise ConfigError(f"{where}.ratio_list: expected fractions between 0 and 1, got {ratio_list}.")
    return [float(f) for f in fractions]
