"""Batch samplers: which samples make a batch, on which rank.

``RatioSampler`` and ``MultiScaleSampler`` keep the YAML names and batch sizes of OpenOCR
(https://github.com/Topdu/OpenOCR, Apache-2.0). What differs is that every sample comes exactly once
per epoch, whatever the number of ranks, and that nothing but (seed, epoch) decides the order.

In training the batches of all ranks together are made first: ``world_size * b`` samples each, split
into ``world_size`` contiguous parts of nearly equal length. So all ranks have the same number of
batches, and two ranks with batch size b see what one process with 2b sees. In evaluation whole
batches are dealt out to the ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from openrec.data.types import Pick
from openrec.errors import ConfigError

_STREAM = 1 << 62  # keeps the samplers' generators apart from those of samples and subsets


class Group(NamedTuple):
    """Samples of one global batch that all get one size."""

    members: np.ndarray  # indices of the data set
    ratio: int = 0  # bucket
    size: tuple[int, int] | None = None  # (width, height) px


def chunks(members: np.ndarray, size: int) -> list[np.ndarray]:
    """Consecutive pieces of ``size``; the last one may be shorter, none is empty."""
    return [members[i : i + size] for i in range(0, len(members), size)]


class BatchSampler:
    """Plain batches of one size; base of the other samplers, which override ``groups``.

    Args:
        dataset: has ``__len__``, and may have ``epoch_indices(epoch)`` and ``buckets``.
        batch_size: samples per rank.
        shuffle: new order every epoch (training only).
        drop_last: leave out the last batch where it is short (training only: evaluation scores every sample).
        seed: of the run.
        rank, world_size: of this process.
        is_training: False gives a constant order, sharded over the ranks by whole batches.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        shuffle: bool = True,
        drop_last: bool = False,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        is_training: bool = True,
    ) -> None:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f"batch size: expected a positive whole number, got {batch_size!r}.")
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank: expected 0..{world_size - 1}, got {rank}.")
        self.dataset, self.batch_size = dataset, batch_size
        self.shuffle, self.drop_last = shuffle and is_training, drop_last and is_training
        self.seed, self.rank, self.world_size, self.is_training = int(seed or 0), rank, world_size, is_training
        self.epoch, self.start_batch = 1, 0
        self._length: int | None = None

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Epoch (from 1) of the next iteration, and how many of its batches to leave out at the start."""
        self.epoch, self.start_batch = int(epoch), int(start_batch)

    def __len__(self) -> int:
        """Batches of this rank in a full epoch; in training the same on all ranks and in all epochs."""
        if self._length is None:
            total = len(self._global_groups(1))
            self._length = total if self.is_training else len(range(self.rank, total, self.world_size))
        return self._length

    def __iter__(self) -> Iterator[list[Pick]]:
        groups = self._global_groups(self.epoch)
        if not self.is_training:
            for group in groups[self.rank :: self.world_size][self.start_batch :]:
                yield [Pick(i, 0, group.size, group.ratio) for i in group.members.tolist()]
            return
        for group in groups[self.start_batch :]:
            yield self._part(group)

    def _part(self, group: Group) -> list[Pick]:
        """This rank's samples of a global batch; a filler of weight 0 where there is none."""
        n, world = len(group.members), self.world_size
        size, spare = divmod(n, world)
        start = self.rank * size + min(self.rank, spare)
        own = group.members[start : start + size + (self.rank < spare)]
        weight = len(own) * world / n
        if not len(own):
            own = group.members[:1]
        return [Pick(i, self.epoch, group.size, group.ratio, weight) for i in own.tolist()]

    def _global_groups(self, epoch: int) -> list[Group]:
        """All batches of an epoch, in order."""
        epoch = epoch if self.is_training else 0
        indices = getattr(self.dataset, "epoch_indices", None)
        members = indices(epoch) if indices is not None else np.arange(len(self.dataset))
        key = np.array([self.seed & (2**64 - 1), _STREAM + epoch], np.uint64)
        return self.groups(members, np.random.Generator(np.random.Philox(key=key)))

    @property
    def _factor(self) -> int:
        """Ranks that share a batch."""
        return self.world_size if self.is_training else 1

    def groups(self, members: np.ndarray, rng: np.random.Generator) -> list[Group]:
        """The global batches made of ``members``."""
        if self.shuffle:
            members = rng.permutation(members)
        size = self.batch_size * self._factor
        if self.drop_last and len(members) >= size:
            members = members[: len(members) // size * size]
        return [Group(part) for part in chunks(members, size)]


def _check_scales(scales: Sequence[Any], where: str) -> list[tuple[int, int]]:
    pairs = [(s, s) if isinstance(s, int) else tuple(s) for s in scales] if isinstance(scales, (list, tuple)) else []
    if not pairs or any(len(p) != 2 or not all(isinstance(v, int) and v > 0 for v in p) for p in pairs):
        raise ConfigError(f"{where}.scales: expected a list of [width, height] in pixels, got {scales!r}.")
    return pairs  # type: ignore[return-value]


class RatioSampler(BatchSampler):
    """One ratio bucket per batch; wide buckets get smaller batches.

    With ``(W0, H0) = scales[0]``, bucket q has ``first_bs`` samples per rank for q < 5, else
    ``min(max_bs, max(1, W0 * first_bs // (H0 * q)))`` (computed for all ranks together).

    Args:
        scales: ``[[width, height], ...]`` px; only the first one matters.
        first_bs, max_bs: samples per rank.
        is_training: see ``BatchSampler``; with shuffled members and batches.
        seed: wins over the run's seed.
    """

    ignored_keys = ("fix_bs", "divided_factor", "max_ratio")

    def __init__(
        self,
        dataset: Any,
        scales: Sequence[Any],
        first_bs: int = 512,
        max_bs: int = 1024,
        is_training: bool = True,
        seed: int | None = None,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(dataset, first_bs, seed=seed or 0, rank=rank, world_size=world_size, is_training=is_training)
        self.base, self.max_bs = _check_scales(scales, "sampler")[0], max_bs

    def global_batch_size(self, q: int) -> int:
        """Samples of bucket ``q`` that all ranks take together."""
        first = self.batch_size * self._factor
        if q < 5:
            return first
        w, h = self.base
        return min(self.max_bs * self._factor, max(1, w * first // (h * q)))

    def groups(self, members: np.ndarray, rng: np.random.Generator) -> list[Group]:
        buckets = getattr(self.dataset, "buckets", None)
        ratios = np.zeros(len(members), np.int64) if buckets is None else np.asarray(buckets)[members]
        made = []
        for q in np.unique(ratios).tolist():
            own = members[ratios == q]
            if self.shuffle:
                own = rng.permutation(own)
            made += [Group(part, q) for part in chunks(own, self.global_batch_size(q))]
        if self.shuffle:
            made = [made[i] for i in rng.permutation(len(made))]
        return made


class MultiScaleSampler(BatchSampler):
    """Batches that cycle over several sizes.

    Args:
        scales: ``[[width, height], ...]`` px; in training rounded down to multiples of ``divided_factor``, in
            evaluation only the first one.
        first_bs: samples per rank of the first size.
        fix_bs: the same for all sizes; else as many as have the first size's pixels.
        divided_factor: (width, height) px.
        is_training: see ``BatchSampler``.
        max_w: with a data set that knows ratios (``ds_width``), a batch's width is the height times the mean ratio
            of its members, which are neighbours in the order of ratios, and at most ``max_w`` px.
        seed: wins over the run's seed.
    """

    ignored_keys = ("ratio_wh",)

    def __init__(
        self,
        dataset: Any,
        scales: Sequence[Any],
        first_bs: int = 128,
        fix_bs: bool = True,
        divided_factor: Sequence[int] = (8, 16),
        is_training: bool = True,
        max_w: float = 480.0,
        seed: int | None = None,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(dataset, first_bs, seed=seed or 0, rank=rank, world_size=world_size, is_training=is_training)
        self.scales = _check_scales(scales, "sampler")
        self.divisor_w, self.divisor_h = (int(f) for f in divided_factor)
        self.fix_bs, self.max_w = fix_bs, max_w

    def _sizes(self) -> list[tuple[int, int, int]]:
        """``(width, height, samples of all ranks)`` per scale."""
        first = self.batch_size * self._factor
        if not self.is_training:
            return [(*self.scales[0], first)]
        sizes = []
        w0, h0 = self.scales[0]
        for w, h in self.scales:
            w = max(self.divisor_w, w // self.divisor_w * self.divisor_w)
            h = max(self.divisor_h, h // self.divisor_h * self.divisor_h)
            sizes.append((w, h, first if self.fix_bs else max(1, w0 * h0 * first // (h * w))))
        return sizes

    def groups(self, members: np.ndarray, rng: np.random.Generator) -> list[Group]:
        ratios = getattr(self.dataset, "ratio", None) if getattr(self.dataset, "ds_width", False) else None
        if ratios is not None:
            if self.shuffle:  # so that equal ratios meet other neighbours in every epoch
                members = rng.permutation(members)
            members = members[np.argsort(ratios[members], kind="stable")]
        elif self.shuffle:
            members = rng.permutation(members)
        made, start, turn, sizes = [], 0, 0, self._sizes()
        while start < len(members):
            w, h, n = sizes[turn % len(sizes)]
            part = members[start : start + n]
            if ratios is not None:
                w = self._width(float(ratios[part].mean()), h)
            made.append(Group(part, 0, (w, h)))
            start, turn = start + n, turn + 1
        return [made[i] for i in rng.permutation(len(made))] if self.shuffle else made

    def _width(self, ratio: float, height: int) -> int:
        width = max(1, round(min(ratio * height, self.max_w) / self.divisor_w))
        return width * self.divisor_w
