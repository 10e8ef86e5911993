"""``SimpleDataSet``: image files with annotation files (names and format of OpenOCR, Apache-2.0)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openrec.charset import Charset
from openrec.data.base import WordDataset, check_fractions
from openrec.data.lmdb_env import nearest_existing
from openrec.data.report import SourceReport
from openrec.errors import ConfigError, DataError, SampleError
from openrec.preprocess.decode import UnreadableImage


class SimpleDataSet(WordDataset):
    """Lines ``image_path<delimiter>label`` with paths relative to ``data_dir``.

    The path may be a JSON list of paths, of which one is chosen at random per access (the first one in evaluation).
    A file that cannot be read is an unusable sample like any other; every other exception is a fault and is seen.

    Args:
        data_dir: root of the relative paths.
        label_file_list: UTF-8 annotation files.
        transforms: give the images their size; end with ``KeepKeys``.
        ratio_list: fraction of every file, or one for each; below 1 the part is drawn anew for every epoch.
        delimiter: between path and label.
        mode, seed, charset, global_config: see ``WordDataset``.

    Raises:
        DataError: an annotation file is missing.
    """

    ignored_keys = ("ext_op_transform_idx",)
    extra_fields = 0  # fields after path and label that a line must have

    def __init__(
        self,
        data_dir: str,
        label_file_list: Sequence[str],
        transforms: Sequence[Any],
        ratio_list: float | Sequence[float] = 1.0,
        delimiter: str = "\t",
        *,
        mode: str = "Train",
        seed: int = 0,
        charset: Charset | None = None,
        global_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(transforms, mode=mode, seed=seed, charset=charset, global_config=global_config)
        files = [label_file_list] if isinstance(label_file_list, str) else list(label_file_list or ())
        if not files:
            raise ConfigError(f"{mode}.dataset.label_file_list: expected at least one file, got {label_file_list!r}.")
        fractions = check_fractions(ratio_list, len(files), f"{mode}.dataset")
        self.data_dir, self.delimiter = Path(data_dir).expanduser(), delimiter.encode()
        self.lines: list[bytes] = []
        source: list[int] = []
        for number, file in enumerate(files):
            self._scan(Path(file).expanduser())
            source += [number] * (len(self.lines) - len(source))
        self.source = np.array(source, np.int32)
        self._after_scan()
        self.use_fractions(self.source, fractions)
        self.report.used = self.samples_per_epoch

    def _after_scan(self) -> None:
        """For a subclass: what must be known before subsets are drawn."""

    def _scan(self, file: Path) -> None:
        try:
            lines = file.read_bytes().split(b"\n")
        except OSError as error:
            raise DataError(
                f'label file "{file}" cannot be read ({error.strerror}). Expected lines "image_path<TAB>label". '
                f"{nearest_existing(file)}"
            ) from error
        found, before = 0, len(self.lines)
        for position, line in enumerate(lines, 1):
            line = line.rstrip(b"\r")
            if not line:
                continue
            found += 1
            reason, label = self._check(line)
            if reason is not None and self.training:
                self.report.skip(reason, f"{file}:{position}", label)
                continue
            if reason is not None:
                self.excluded[len(self.lines)] = reason
                self.report.exclude(reason, f"{file}:{position}", label)
            self.lines.append(line)
        self.report.found += found
        self.report.used += len(self.lines) - before
        self.report.sources.append(SourceReport(str(file), found, len(self.lines) - before))

    def _check(self, line: bytes) -> tuple[str | None, str]:
        """``(reason or None, label)`` of a line."""
        fields = line.split(self.delimiter)
        if len(fields) < 2:
            return f"line has no delimiter {self.delimiter.decode()!r}", line.decode("utf-8", "replace")
        if len(fields) < 2 + self.extra_fields:
            return f"line has {len(fields)} of {2 + self.extra_fields} fields", line.decode("utf-8", "replace")
        try:
            text = fields[1].decode("utf-8")
            fields[0].decode("utf-8")
        except UnicodeDecodeError:
            return "label is not UTF-8", repr(fields[1])
        return self.judge(text), text

    def fields(self, index: int) -> list[str]:
        """The decoded fields of a line; at least path and label."""
        fields = self.lines[index].decode("utf-8", "replace").split(self.delimiter.decode())
        return fields if len(fields) > 1 else [fields[0], ""]

    def __len__(self) -> int:
        return len(self.lines)

    def text(self, index: int) -> str:
        return self.fields(index)[1]

    def name(self, index: int) -> str:
        return str(self.data_dir / self.fields(index)[0])

    def read(self, index: int, rng: np.random.Generator) -> tuple[bytes, str]:
        path, label = self.fields(index)[:2]
        if path.startswith("["):
            try:
                choices = json.loads(path)
                path = choices[int(rng.random() * len(choices))] if self.training else choices[0]
            except (ValueError, IndexError) as error:
                raise SampleError("path is not a JSON list of paths") from error
        try:
            return (self.data_dir / path).read_bytes(), label
        except OSError as error:
            raise UnreadableImage(f"image file cannot be read ({error.strerror})") from error
