"""A checkpoint as a file of ``weights/``: float16, complete in itself, within the limits of the repository."""

from __future__ import annotations

import json
import os
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openrec.charset import Charset
from openrec.checkpoint import read_checkpoint, save_checkpoint, write_atomically
from openrec.data.render import WordRenderer
from openrec.errors import ConfigError, OpenRecError
from openrec.export.run import export
from openrec.recognizer import Recognizer, load
from openrec.shipping.wordsets import language_of

MOST_BYTES, MOST_TOTAL = 16_000_000, 32_000_000  # of one file, of all
LEAST_AGREEMENT = 0.98  # share of pictures that float16 weights must read as the float32 ones
SAMPLES, SAMPLE_BYTES = 10, 20_000


def pack(checkpoint: str | Path, name: str, folder: str | Path = "weights", *, pictures: int = 200) -> Path:
    """Write ``folder/<name>.safetensors`` from the averaged weights of ``checkpoint``.

    Raises:
        OpenRecError: weights that float16 cannot hold, a file above the limits, or one that reads differently.
    """
    if not name or Path(name).name != name or Path(name).suffix:
        raise ConfigError(f"name: expected a plain name such as tiny-en, got {name!r}.")
    folder, recognizer = Path(folder), load(checkpoint, device="cpu")
    largest = max(float(v.abs().max()) for v in recognizer.model.state_dict().values() if v.is_floating_point())
    if not largest < torch.finfo(torch.float16).max:
        raise OpenRecError(f'"{checkpoint}": a weight of {largest:.3g} does not fit float16 (65504).')
    target = folder / f"{name}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".pack-") as work:
        made = export(recognizer, Path(work) / target.name, "safetensors", half=True, count=pictures)
        check_sizes([made.path.stat().st_size, *(f.stat().st_size for f in models(folder) if f != target)], name)
        agreement = made.agreement
        if agreement.texts < LEAST_AGREEMENT * agreement.pictures:
            raise OpenRecError(f"{name}: float16 weights read differently: {agreement}.")
        os.replace(made.path, target)
    return target


def models(folder: str | Path) -> list[Path]:
    """The packed files of a folder, sorted."""
    return sorted(Path(folder).glob("*.safetensors"))


def check_sizes(sizes: Sequence[int], name: str = "weights") -> None:
    """``sizes`` in bytes, the new file first.

    Raises:
        OpenRecError: above ``MOST_BYTES`` each or ``MOST_TOTAL`` together; says by how much.
    """
    if max(sizes) > MOST_BYTES:
        over = (max(sizes) - MOST_BYTES) / 1e6
        raise OpenRecError(
            f"{name}: {max(sizes) / 1e6:.2f} MB, {over:.2f} MB more than the 16 MB that a file may have."
        )
    if sum(sizes) > MOST_TOTAL:
        over = (sum(sizes) - MOST_TOTAL) / 1e6
        raise OpenRecError(f"{name}: all weights together would have {over:.2f} MB more than the 32 MB they may have.")


def facts_of(file: str | Path) -> dict[str, Any]:
    """What a card says about the file itself."""
    recognizer = load(file, device="cpu")
    characters = recognizer.charset.characters
    width, height = recognizer.preprocess.shapes()[-1]
    longest = recognizer.frames(recognizer.backend.run(np.zeros((1, 3, height, width), np.float32)), width)
    return {
        "bytes": Path(file).stat().st_size,
        "parameters": sum(p.numel() for p in recognizer.model.parameters()),
        "characters": len(characters), "kinds": kinds(recognizer.charset), "space": " " in characters,
        "size": _size(recognizer), "longest": longest or 25,
    }  # fmt: skip


def _size(recognizer: Recognizer) -> str:
    shapes = recognizer.preprocess.shapes()
    (narrowest, height), (widest, _) = shapes[0], shapes[-1]
    if len(shapes) == 1:
        return f"{height} x {widest} px, kept in proportion and padded"
    return f"{height} px high, {narrowest} to {widest} px wide by their own proportions"


def keep_state(checkpoint: str | Path, target: str | Path) -> Path:
    """A training state to continue from in half the bytes: weights as they are, averages over many steps short.

    Adam's moments become bfloat16 (their range matters), averaged weights float16.
    """
    state = read_checkpoint(checkpoint)
    for moments in state["optimizer"]["state"].values():
        for name, value in moments.items():
            if torch.is_tensor(value) and value.ndim:
                moments[name] = value.bfloat16()
    averaged = (state.get("ema") or {}).get("state_dict", {})
    same = {k for k, v in averaged.items() if torch.equal(v, state["state_dict"][k])}  # tables, which must stay exact
    averaged.update({k: v.half() for k, v in averaged.items() if v.dtype == torch.float32 and k not in same})
    save_checkpoint(state, target)
    return Path(target)


def kinds(charset: Charset) -> str:
    """``10 digits, 52 Latin letters, 2350 Hangul syllables, 32 marks``."""
    groups = {
        "digits": 0,
        "Latin letters": 0,
        "Hangul syllables": 0,
        "Han characters": 0,
        "other letters": 0,
        "marks": 0,
    }
    for c in charset.characters:
        first = c[0]
        if unicodedata.category(first)[0] != "L":
            groups["digits" if first.isdigit() else "marks"] += 1
        elif "가" <= first <= "힣":
            groups["Hangul syllables"] += 1
        elif "一" <= first <= "鿿":
            groups["Han characters"] += 1
        else:
            groups["Latin letters" if "LATIN" in unicodedata.name(first, "") else "other letters"] += 1
    return ", ".join(f"{n} {kind}" for kind, n in groups.items() if n)


def write_samples(recognizer: Recognizer, folder: str | Path, fonts: Sequence[str], tries: int = 100) -> int:
    """Write ten rendered words that the model reads, for a test that later changes do not break it.

    They are the first ten of a series of unseen words; this is no measure of accuracy.

    Args:
        fonts: families with an open licence; named in the folder's ``README.md``.

    Returns:
        How many words were looked at.

    Raises:
        OpenRecError: fewer than ten of ``tries`` words were read.
    """
    renderer = WordRenderer(
        recognizer.charset, language_of(recognizer.charset), fonts=list(fonts), min_length=2, max_length=8,
        height=(24, 36), word_split="test", strength=0.6,
    )  # fmt: skip
    kept: list[Any] = []
    used: set[str] = set()
    looked = 0
    while len(kept) < SAMPLES and looked < tries:
        word = renderer.render(np.random.default_rng((1, looked)))
        looked += 1
        if " " not in word.text and recognizer([word.jpeg])[0].text == word.text:
            kept.append(word)
            used.add(word.font)
    if len(kept) < SAMPLES:
        raise OpenRecError(f"only {len(kept)} of {looked} rendered words were read: the model is not ready to ship.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for number, word in enumerate(kept):
        write_atomically(folder / f"{number}.jpg", word.jpeg)
    rows = "".join(f"{number}.jpg\t{word.text}\n" for number, word in enumerate(kept))
    write_atomically(folder / "labels.tsv", rows.encode())
    about = (
        f"Ten words rendered by this project (the first {SAMPLES} of {looked} unseen words that the model read when "
        f"it was packed; no measure of accuracy). Fonts, all openly licensed: {', '.join(sorted(used))}.\n"
    )
    write_atomically(folder / "README.md", about.encode())
    return looked


def read_facts(path: str | Path) -> dict[str, Any]:
    """``weights/<name>.json``, empty where there is none."""
    path = Path(path)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"name": path.stem}


def write_facts(path: str | Path, facts: Mapping[str, Any]) -> None:
    write_atomically(Path(path), (json.dumps(facts, ensure_ascii=False, indent=1) + "\n").encode())
