"""From a config to batches."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader

from openrec import registry
from openrec.charset import Charset
from openrec.data.collate import collate
from openrec.data.report import DataReport
from openrec.data.samplers import BatchSampler, RatioSampler
from openrec.data.types import Batch
from openrec.errors import ConfigError, DataError

# Names that configs give to ``loader.collate_fn`` and that mean the one collate function there is.
COLLATE_NAMES = (None, "ListCollator", "DictCollator")


class Loader:
    """Batches of a data set, epoch by epoch.

    Attributes:
        dataset, sampler: what the config names.
        report: what was found, used and skipped.
    """

    def __init__(
        self,
        dataset: Any,
        sampler: BatchSampler,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        start_method: str | None = None,
    ) -> None:
        self.dataset, self.sampler = dataset, sampler
        self.report: DataReport = dataset.report
        # Images are far too small to share between threads; and a forked worker hangs in OpenCV if its parent has
        # an OpenCV thread pool, so the parent's goes before any worker starts.
        cv2.setNumThreads(1)
        self._loader: DataLoader | None = DataLoader(
            dataset,
            batch_sampler=sampler,  # type: ignore[arg-type]
            num_workers=num_workers,
            pin_memory=pin_memory and torch.cuda.is_available(),
            collate_fn=collate,
            worker_init_fn=_init_worker,
            persistent_workers=num_workers > 0,
            multiprocessing_context=start_method if num_workers else None,
        )

    def __len__(self) -> int:
        """Batches of this rank in a full epoch."""
        return len(self.sampler)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch`` (from 1) from number ``start_batch`` (from 0) on; earlier ones are not loaded."""
        if self._loader is None:
            raise RuntimeError("this loader is closed")
        self.sampler.set_epoch(epoch, start_batch)
        return iter(self._loader)

    def close(self) -> None:
        """Stop the workers; the loader cannot be used afterwards."""
        iterator = getattr(self._loader, "_iterator", None)
        if iterator is not None and hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
        self._loader = None


def _init_worker(worker_id: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's: it finishes its step and saves
    torch.set_num_threads(1)
    if cv2.getNumThreads() != 1:  # in a forked worker the call would wait for threads that are not there
        cv2.setNumThreads(1)


def build_loader(
    config: Mapping[str, Any],
    mode: str,
    *,
    charset: Charset | None,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    logger: logging.Logger | None = None,
) -> Loader:
    """The loader of ``config["Train"]`` or ``config["Eval"]``.

    Args:
        config: the whole config.
        mode: ``Train`` or ``Eval``.
        charset: of the run.
        seed: of the run; with the epoch and a sample's index it decides every random choice.
        rank, world_size: of this process.

    Raises:
        ConfigError: unknown or contradictory keys.
        DataError: data missing, or not one usable sample.
    """
    logger = logger or logging.getLogger("openrec")
    section = config.get(mode)
    if not isinstance(section, Mapping) or not section.get("dataset"):
        raise ConfigError(f"{mode}.dataset: missing. Expected a mapping with a name, such as RatioDataSetTVResize.")
    options = dict(section.get("loader") or {})
    dataset = build_dataset(config, mode, charset=charset, seed=seed)
    if options.get("collate_fn") not in COLLATE_NAMES:
        known = ", ".join(str(n) for n in COLLATE_NAMES[1:])
        raise ConfigError(f"{mode}.loader.collate_fn: {options['collate_fn']!r} is not available. Known: {known}.")
    sampler = _build_sampler(section, dataset, mode, seed=seed, rank=rank, world_size=world_size, logger=logger)
    if rank == 0:
        logger.info("%s data: %s", mode, dataset.report)
    if len(dataset) == 0 or (len(sampler) == 0 and (mode == "Train" or rank == 0)):
        raise DataError(f"{mode}.dataset: no usable sample, at least one is needed.\n{dataset.report}")
    return Loader(
        dataset,
        sampler,
        num_workers=int(options.get("num_workers", 0) or 0),
        pin_memory=bool(options.get("pin_memory", False)),
        start_method=options.get("start_method"),
    )


def build_dataset(config: Mapping[str, Any], mode: str, *, charset: Charset | None, seed: int = 0) -> Any:
    """The data set of ``config[mode]``; see ``build_loader``."""
    section = config[mode]
    options = section.get("loader") or {}
    context: dict[str, Any] = {"mode": mode, "seed": seed, "charset": charset, "global_config": config.get("Global")}
    context |= {key: options[key] for key in ("min_ratio", "max_ratio") if options.get(key) is not None}
    if mode == "Eval":
        _compare_channels(config)
    return registry.build("dataset", section["dataset"], f"{mode}.dataset", **context)


def _build_sampler(
    section: Mapping[str, Any], dataset: Any, mode: str, *, seed: int, rank: int, world_size: int, logger: Any
) -> BatchSampler:
    options, wanted, training = section.get("loader") or {}, section.get("sampler"), mode == "Train"
    common: dict[str, Any] = {"rank": rank, "world_size": world_size}
    if wanted:
        wanted = dict(wanted)
        if wanted.get("is_training", training) != training:
            logger.warning("%s.sampler.is_training is %s; %s is used.", mode, wanted["is_training"], training)
        if wanted.get("seed") is None:
            wanted["seed"] = seed
        unused = [k for k in ("batch_size_per_card", "drop_last") if k in options]
        if unused:
            logger.info("%s.loader.%s: not used, the sampler decides.", mode, " and ".join(unused))
        wanted["is_training"] = training
        return registry.build("sampler", wanted, f"{mode}.sampler", dataset=dataset, **common)
    size = options.get("batch_size_per_card")
    if size is None:
        raise ConfigError(f"{mode}.loader.batch_size_per_card: missing; it is needed where there is no sampler.")
    if getattr(dataset, "buckets", None) is not None:
        logger.info("%s: no sampler given; the data set has ratio buckets, so RatioSampler is used.", mode)
        return RatioSampler(dataset, [[128, 32]], size, is_training=training, seed=seed, **common)
    if options.get("drop_last") and not training:
        logger.info("%s.loader.drop_last: not used, evaluation scores every sample.", mode)
    return BatchSampler(
        dataset,
        size,
        shuffle=bool(options.get("shuffle", training)),
        drop_last=bool(options.get("drop_last", False)),
        seed=seed,
        is_training=training,
        **common,
    )


def _compare_channels(config: Mapping[str, Any]) -> None:
    """Warn where training and evaluation see the colour channels in different orders."""
    modes = {}
    for mode in ("Train", "Eval"):
        transforms = ((config.get(mode) or {}).get("dataset") or {}).get("transforms") or []
        for entry in transforms:
            for name, arguments in entry.items() if isinstance(entry, Mapping) else ():
                if name.startswith("DecodeImage"):
                    modes[mode] = (arguments or {}).get("img_mode", "RGB")
    if len(set(modes.values())) > 1:
        registry.warn_once(
            "Eval.dataset",
            "img_mode",
            f"Train decodes images as {modes['Train']}, Eval as {modes['Eval']}: the model is evaluated on channels in "
            "another order than it was trained on.",
        )
