"""Data sets on LMDB environments of one image size: ``LMDBDataSet``, ``LMDBDataSetTest``.

Format and names are OpenOCR's (https://github.com/Topdu/OpenOCR, Apache-2.0), see ``lmdb_env``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from openrec.charset import Charset
from openrec.data import openocr_rule
from openrec.data.base import WordDataset
from openrec.data.lmdb_env import LmdbReader, leaf_environments
from openrec.data.report import SourceReport
from openrec.errors import DataError, SampleError
from openrec.preprocess.decode import UnreadableImage, image_size

UNKNOWN_RATIO = 4.0  # of an evaluation image whose size cannot be found


class LmdbWords(WordDataset):
    """Records of several LMDB environments, scanned once for unusable ones.

    Args:
        paths: environment directories.
        with_ratio: also find width / height of every image, from ``wh-`` keys or image headers.
        transforms, mode, seed, charset, global_config: see ``WordDataset``.
        judge_ratio: ``ratio -> reason to refuse the record, or None``.

    Raises:
        DataError: a path is no LMDB, or not one record of all is usable.
    """

    def __init__(
        self,
        paths: Sequence[str],
        transforms: Sequence[Any],
        *,
        with_ratio: bool = False,
        judge_ratio: Callable[[float], str | None] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(transforms, **common)
        self.readers = [LmdbReader(path) for path in paths]
        self._judge_ratio = judge_ratio
        scans = [self._scan(reader, with_ratio) for reader in self.readers]
        self.source = np.concatenate([np.full(len(n), s, np.int32) for s, (n, _) in enumerate(scans)])
        self.number = np.concatenate([n for n, _ in scans])
        self.ratio = np.concatenate([r for _, r in scans]) if with_ratio else None
        for reader in self.readers:  # open again, lazily, in the process that needs it
            reader.close()

    def _scan(self, reader: LmdbReader, with_ratio: bool) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and ratios of the records to serve; fills the report."""
        n = reader.num_samples()
        reasons: dict[int, tuple[str, str]] = {}  # number -> reason, label
        self._scan_keys(reader, n, reasons)
        ratios = self._scan_ratios(reader, n, reasons) if with_ratio else np.zeros(n, np.float32)
        keep = np.ones(n, bool)
        if self.training:
            keep[[number - 1 for number in reasons]] = False
        base = self.report.used
        for number, (reason, label) in sorted(reasons.items()):
            if self.training:
                self.report.skip(reason, reader.name(number), label)
            else:
                self.excluded[base + number - 1] = reason
                self.report.exclude(reason, reader.name(number), label)
        used = int(keep.sum())
        self.report.found += n
        self.report.used += used
        self.report.sources.append(SourceReport(reader.path, n, used))
        return (np.flatnonzero(keep) + 1).astype(np.int32), ratios[keep]

    def _scan_keys(self, reader: LmdbReader, n: int, reasons: dict[int, tuple[str, str]]) -> None:
        has_image, has_label = np.zeros(n + 1, bool), np.zeros(n + 1, bool)
        for number in reader.numbers("image"):
            if number <= n:
                has_image[number] = True
        for number, value in reader.items("label"):
            if not 0 < number <= n:
                continue
            has_label[number] = True
            try:
                text = value.decode("utf-8")
                reason = self.judge(text)
            except UnicodeDecodeError:
                text, reason = repr(value), "label is not UTF-8"
            if reason is not None:
                reasons[number] = (reason, text)
        for number in (np.flatnonzero(~has_label[1:]) + 1).tolist():
            reasons[number] = ("label key is missing", "")
        if self.training:
            for number in (np.flatnonzero(~has_image[1:]) + 1).tolist():
                reasons.setdefault(number, ("image key is missing", ""))

    def _scan_ratios(self, reader: LmdbReader, n: int, reasons: dict[int, tuple[str, str]]) -> np.ndarray:
        ratios = np.zeros(n, np.float32)
        for number, value in reader.items("wh"):
            w, _, h = value.partition(b"_")
            if 0 < number <= n and w.isdigit() and h.isdigit() and int(w) and int(h):
                ratios[number - 1] = int(w) / int(h)
        for number in (np.flatnonzero(ratios == 0) + 1).tolist():
            try:
                width, height = image_size(reader.image(number) or b"")
                ratios[number - 1] = width / height
            except UnreadableImage as error:
                ratios[number - 1] = UNKNOWN_RATIO
                if self.training:
                    reasons.setdefault(number, (str(error), ""))
        if self._judge_ratio is not None:
            for number, ratio in enumerate(ratios.tolist(), 1):
                reason = self._judge_ratio(ratio)
                if reason is not None:
                    reasons.setdefault(number, (reason, ""))
        return ratios

    def __len__(self) -> int:
        return len(self.number)

    def name(self, index: int) -> str:
        return self.readers[self.source[index]].name(self.number[index])

    def read(self, index: int, rng: np.random.Generator) -> tuple[bytes, str]:
        reader, number = self.readers[self.source[index]], int(self.number[index])
        image, label = reader.image(number), reader.label(number)
        if image is None:
            raise UnreadableImage("image key is missing")
        if self.training:
            if label is None:
                raise SampleError("label key is missing")
            return image, label.decode("utf-8")
        return image, (label or b"").decode("utf-8", "replace")

    def text(self, index: int) -> str:
        label = self.readers[self.source[index]].label(int(self.number[index]))
        return (label or b"").decode("utf-8", "replace")


class LMDBDataSet(LmdbWords):
    """All LMDB environments at or below ``data_dir``; images get their size from the transforms.

    Args:
        data_dir: searched recursively for directories with a ``data.mdb``.
        transforms, mode, seed, charset, global_config: see ``WordDataset``.
    """

    ignored_keys = ("ratio_list", "ext_op_transform_idx")

    def __init__(
        self,
        data_dir: str,
        transforms: Sequence[Any],
        *,
        mode: str = "Train",
        seed: int = 0,
        charset: Charset | None = None,
        global_config: Mapping[str, Any] | None = None,
    ) -> None:
        paths = leaf_environments(data_dir)
        super().__init__(paths, transforms, mode=mode, seed=seed, charset=charset, global_config=global_config)


class LMDBDataSetTest(LmdbWords):
    """One LMDB environment, marked by OpenOCR's benchmark rule (``openocr_rule``).

    Every sample is served; ``Sample.excluded`` tells which ones OpenOCR would leave out. As there,
    the label that is encoded is the cleaned one; ``Sample.text`` stays raw.

    Args:
        data_dir: the environment directory.
        filter_label: False leaves only whitespace removal and the length test.
        transforms, mode, seed, charset, global_config: see ``WordDataset``.
    """

    ignored_keys = ("ext_op_transform_idx", "ratio_list")

    def __init__(
        self,
        data_dir: str,
        transforms: Sequence[Any],
        filter_label: bool = True,
        *,
        mode: str = "Eval",
        seed: int = 0,
        charset: Charset | None = None,
        global_config: Mapping[str, Any] | None = None,
    ) -> None:
        self.filter_label = filter_label
        super().__init__([data_dir], transforms, mode=mode, seed=seed, charset=charset, global_config=global_config)

    def label_for_tensors(self, text: str) -> str:
        if self.charset is None:
            return text
        return openocr_rule.clean_label(text, self.charset, self.max_text_length, self.filter_label) or ""

    def judge(self, text: str) -> str | None:
        if self.charset is None:
            return super().judge(text)
        reason = openocr_rule.exclusion(text, self.charset, self.max_text_length, self.filter_label)
        return reason or super().judge(self.label_for_tensors(text))


def require_usable(dataset: WordDataset, what: str) -> None:
    """Raises ``DataError`` with counts by reason when ``dataset`` has nothing to serve."""
    if dataset.samples_per_epoch == 0:
        raise DataError(f"{what}: no usable sample.\n{dataset.report}\nExpected at least one.")
