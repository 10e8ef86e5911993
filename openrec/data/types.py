"""What travels between samplers, datasets, the collate function and the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # the data tools need no torch
    from torch import Tensor


class Pick(NamedTuple):
    """What a sampler asks a dataset for."""

    index: int  # type: ignore[assignment]  # position in the dataset
    epoch: int = 1  # 1-based epoch: goes into the sample's random generator
    size: tuple[int, int] | None = None  # target (width, height) px; None: the transforms decide
    ratio: int = 0  # ratio bucket (0: none)
    weight: float = 1.0  # the batch's loss weight on this rank


@dataclass
class Sample:
    """One transformed sample.

    Attributes:
        values: in ``keep_keys`` order; ``values[0]`` is the image.
        text: the raw label, as stored.
        name: ``"path/of/lmdb:image-000000012"`` or a file path.
        excluded: evaluation: why OpenOCR's rule would not score this sample, else None.
        unreadable: evaluation: the image could not be decoded and is mid-grey.
        weight: the batch's loss weight on this rank.
    """

    values: list[Any]
    text: str
    name: str
    excluded: str | None = None
    unreadable: bool = False
    weight: float = 1.0


@dataclass
class Skipped:
    """A training sample that could not be used. ``weight`` as in ``Sample``."""

    name: str
    reason: str
    weight: float = 1.0


@dataclass
class Batch:
    """Collated samples of one rank.

    Attributes:
        tensors: ``keep_keys`` order, ``[0]`` = image float32 ``[B, 3, H, W]``; empty when every
            sample was skipped.
        texts: raw labels.
        names: see ``Sample.name``.
        skipped: training samples dropped from this batch.
        excluded: see ``Sample.excluded``.
        unreadable: see ``Sample.unreadable``.
        weight: loss weight on this rank; 1.0 in a single process, 0.0 for a filler.
    """

    tensors: list[Tensor] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    excluded: list[str | None] = field(default_factory=list)
    unreadable: list[bool] = field(default_factory=list)
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.names)

    def pin_memory(self) -> Batch:
        """The same batch with its tensors in page-locked memory."""
        self.tensors = [t.pin_memory() for t in self.tensors]
        return self

    def to(self, device: Any, non_blocking: bool = False) -> Batch:
        """The same batch with its tensors on ``device``."""
        self.tensors = [t.to(device, non_blocking=non_blocking) for t in self.tensors]
        return self
