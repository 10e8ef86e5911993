"""What the page asks for, without the web: models, examples, and one picture read by one model."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openrec.errors import ConfigError, DataError, SampleError
from openrec.reading import word_page
from openrec.reading.inputs import MAX_PIXELS, Source, sources
from openrec.reading.looking import Explanation, explain

EXAMPLES = 16  # pictures that the page offers


class Service:
    """Models that read pictures for the page. Safe to call from several threads.

    Args:
        recognizers: what ``openrec.load`` returned, at least one.
        examples: paths, folders or globs of pictures that the page offers to try; the first 16.
        max_pixels: larger pictures are refused with a message.
    """

    def __init__(self, recognizers: Sequence[Any], examples: Any = (), max_pixels: int = MAX_PIXELS) -> None:
        if not recognizers:
            raise ConfigError("the page needs at least one model: --model PATH [PATH ...].")
        self.recognizers, self.max_pixels = list(recognizers), max_pixels
        self.examples = [s.content for s in sources(list(examples))[:EXAMPLES]]
        for path in self.examples:
            if isinstance(path, (str, os.PathLike)) and not os.path.lexists(path):
                raise DataError(f'--images: "{path}" not found (working directory: {os.getcwd()}). Correct the path.')
        self._one_at_a_time = threading.Lock()  # two pictures at once would share the cores and help nobody

    def models(self) -> list[dict[str, Any]]:
        """What the page says about each model."""
        names = _short_names([str(r.name) for r in self.recognizers])
        return [{"name": name, **_card(r)} for name, r in zip(names, self.recognizers)]

    def example(self, number: int) -> bytes:
        """The file of an example. Raises ``SampleError`` where there is none."""
        if not 0 <= number < len(self.examples):
            raise SampleError("there is no such example")
        try:
            return Path(self.examples[number]).read_bytes()
        except OSError as error:
            raise SampleError(error.strerror or str(error)) from error

    def read(self, number: int, data: bytes) -> dict[str, Any]:
        """One picture read by model ``number``: text, characters with their probabilities, pictures, all plain types.

        Raises:
            SampleError: the picture cannot be read, or there is no such model; the message is for the user.
        """
        if not 0 <= number < len(self.recognizers):
            raise SampleError("there is no such model; reload the page")
        recognizer, source = self.recognizers[number], Source("picture", data)
        with self._one_at_a_time:
            start = time.perf_counter()
            (word,) = recognizer([source], 1, max_pixels=self.max_pixels)
            seconds = time.perf_counter() - start
            if word.error:
                raise SampleError(word.error)
            found = explain(recognizer, source, self.max_pixels) if hasattr(recognizer.backend, "model") else None
        return {
            "text": word.text, "score": word.score, "size": word.size, "seconds": seconds,
            **(_pictures(found) if found else _no_pictures(word)),
        }  # fmt: skip


def _pictures(found: Explanation) -> dict[str, Any]:
    """For the page: each character with where it was looked at, and the parts of ``word_page``."""
    names, scores = word_page.characters(found), found.decoded.char_scores
    heat: list[str | None] = [word_page.png(word_page.heated(found.seen, m)) for m in found.maps]
    heat = heat or [None] * len(names)
    chars = [{"char": c, "score": float(s), "look": h} for c, s, h in zip(names, scores, heat)]
    whole = word_page.png(word_page.heated(found.seen, np.max(found.maps, 0))) if found.maps else None
    return {
        "chars": chars, "seen": word_page.png(found.seen), "look": whole, "source": found.source,
        "details": word_page.sections(found), "note": "",
    }  # fmt: skip


def _no_pictures(word: Any) -> dict[str, Any]:
    names = list(word.text) if len(word.text) == len(word.char_scores) else [""] * len(word.char_scores)
    note = "An exported model tells its text and confidences only; load the .pth to see where it looks."
    chars = [{"char": c, "score": s, "look": None} for c, s in zip(names, word.char_scores)]
    return {"chars": chars, "seen": None, "look": None, "source": "", "details": "", "note": note}


def _card(recognizer: Any) -> dict[str, Any]:
    architecture = recognizer.card.config["Architecture"]
    parts = [(architecture.get(part) or {}).get("name") for part in ("Transform", "Encoder", "Decoder")]
    backend = recognizer.backend
    count = sum(p.numel() for p in backend.model.parameters()) if hasattr(backend, "model") else None
    return {
        "parts": " + ".join(filter(None, parts)), "characters": len(recognizer.charset), "parameters": count,
        "backend": backend.name, "file": str(recognizer.name),
    }  # fmt: skip


def _short_names(files: Sequence[str]) -> list[str]:
    """File names without what all runs call theirs: ``run/best.pth`` is ``run``; equal names get a number."""
    names: list[str] = []
    for file in map(Path, files):
        plain = file.stem in ("best", "latest", "model") and file.parent.name
        name = file.parent.name if plain else file.stem
        same = sum(n == name or n.startswith(f"{name} (") for n in names)
        names.append(f"{name} ({same + 1})" if same else name)
    return names
