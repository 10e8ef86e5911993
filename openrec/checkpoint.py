"""Checkpoint files: written whole or not at all, read without running anything that is in them.

The layout is OpenOCR's (https://github.com/Topdu/OpenOCR, Apache-2.0): a dict with ``epoch``,
``global_step``, ``state_dict``, ``optimizer``, ``scheduler``, ``config``, ``metrics``; what an exact
resume needs stands beside it under keys of our own. Files written by OpenOCR load as well, also those
whose config is an instance of a class of that project.
"""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import re
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from openrec.errors import CheckpointError
from openrec.export_format import CHARSET

# ---- writing ---------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """``value`` in types that ``torch.load(weights_only=True)`` accepts; subclasses become their base type.

    Raises:
        TypeError: something that is neither a tensor, a number, a text, nor a container of them.
    """
    if isinstance(value, Mapping):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        items = [plain(v) for v in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, bytes)):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, (set, frozenset)):
        return sorted(plain(v) for v in value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"a checkpoint cannot hold {type(value).__name__}")


def save_checkpoint(state: Mapping[str, Any], path: str | Path) -> None:
    """Write ``state`` to ``path``: the old file stays until the new one is complete on the disk.

    Raises:
        CheckpointError: full disk, missing rights and the like; names the file, which is unchanged.
    """
    target = Path(path)
    buffer = io.BytesIO()
    torch.save(plain(state), buffer)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, buffer.getbuffer())
    except OSError as error:
        kept = "The file that was there before is unchanged." if target.exists() else "Nothing was written."
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            size = len(buffer.getbuffer()) / 1e6
            advice = f"It needs {size:.1f} MB: free some space and start the same command again."
        else:
            advice = "Check the directory and its rights, or choose another Global.output_dir."
        raise CheckpointError(f'cannot write "{target}" ({error.strerror or error}). {kept} {advice}') from error


def write_atomically(target: Path, data: bytes | memoryview) -> None:
    """Temporary file in the same directory, fsync, rename, fsync of the directory."""
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    with suppress(OSError):  # not every file system can do it; the rename itself is done
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def remove_leftovers(directory: str | Path) -> None:
    """Delete the temporary files of a process that was killed while it wrote a checkpoint."""
    for file in Path(directory).glob(".*.pth.*.tmp"):
        with suppress(OSError):
            file.unlink()


# ---- reading ---------------------------------------------------------------------------------------


class _ForeignDict:
    """Stands for a dict class of another project (OpenOCR's ``AttrDict``); nothing of it is imported."""

    def __new__(cls) -> Any:  # type: ignore[misc]
        return OrderedDict()  # the one kind of dict whose attributes the safe reader lets a file set


_DICT_CLASS = re.compile(r"(?:[A-Za-z_]\w*\.)+\w*Dict")
_REFUSED = re.compile(r"(?:Unsupported (?:global|class)|GLOBAL)[^\w]*(?:GLOBAL )?([\w.]+)")
# Numbers that NumPy made: the metrics of old checkpoints hold them.
_NUMPY: dict[str, Any] = {
    "numpy.dtype": np.dtype,
    **{f"numpy.{core}.multiarray.scalar": np.float64(0).__reduce__()[0] for core in ("core", "_core")},
    **{f"numpy.dtypes.{kind.__name__}": kind for kind in {type(np.dtype(c)) for c in "?bBhHiIlLqQefd"}},
}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a ``.pth`` or ``.safetensors`` file, on the CPU; ``state_dict`` is always present.

    A file that is a bare state dict comes back as ``{"state_dict": ...}``. Only tensors and plain types are
    read; a dict class of another project becomes a dict.

    Raises:
        CheckpointError: missing, damaged, or holding anything else.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        raise CheckpointError(f'"{path}" is a directory. Expected a checkpoint file, such as best.pth in it.')
    if not file.is_file():
        raise CheckpointError(
            f'"{path}" not found (working directory: {Path.cwd()}). Expected a checkpoint file such as '
            "output/.../best.pth; correct the path, or set it to null to start from new weights."
        )
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    else:
        content = _read_torch(file)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f'"{path}" holds a {type(content).__name__}. Expected a dict with "state_dict", as training writes it.'
        )
    content = plain(content)
    for key in ("state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            return {**content, "state_dict": content[key]}
    if not any(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f'"{path}" holds no weights. Expected a dict with "state_dict", or a state dict.')
    return {"state_dict": content}


def _read_safetensors(file: Path) -> dict[str, Any]:
    """Weights, and the characters where an export wrote them."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), "pt") as opened:
            about = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it is no mapping
        characters = {"charset": json.loads(about[CHARSET])} if CHARSET in about else {}
        return {"state_dict": weights, **characters}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f'"{file}" cannot be read as safetensors ({error}). Is it complete?') from error


def _read_torch(file: Path) -> Any:
    allowed = dict(_NUMPY)
    while True:
        try:
            with torch.serialization.safe_globals([(value, name) for name, value in allowed.items()]):
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            name = _refused_name(str(error))
            if name in allowed or not _DICT_CLASS.fullmatch(name):
                raise CheckpointError(_unreadable(file, name, error)) from error
            allowed[name] = _ForeignDict
        except (OSError, RuntimeError, EOFError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
            raise CheckpointError(_unreadable(file, "", error)) from error


def _refused_name(message: str) -> str:
    found = _REFUSED.search(message)
    return found.group(1) if found else ""


def _unreadable(file: Path, name: str, error: Exception) -> str:
    if name:
        return (
            f'"{file}" holds an object of "{name}", which is not read: a checkpoint may hold tensors, numbers, texts '
            "and containers of them. If you trust the file, load it where it was made and save its state_dict alone."
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = next((line for line in lines if "unsupported" in line.lower()), lines[0] if lines else "damaged")[:200]
    with open(file, "rb") as stream:
        start = stream.read(2)
    if not start:
        reason = "the file is empty"
    elif start == b"PK" and "central directory" in reason:
        reason = "its end is missing"
    elif start != b"PK" and start[:1] != b"\x80":  # neither an archive nor a pickle
        reason = "not a file of torch.save"
    return f'"{file}" cannot be read ({reason}). It is incomplete, or no checkpoint; copy it again or use another one.'


# ---- weights into a model --------------------------------------------------------------------------

_WRAPPERS = ("module.", "_orig_mod.")
# One head stands alone in a CTC model and inside a GTC model: either one starts from the other.
_HEADS = (("decoder.", "decoder.ctc_decoder."), ("decoder.ctc_decoder.", "decoder."))


@dataclass
class LoadReport:
    """What became of the tensors of a file and of a model.

    Attributes:
        loaded: names in the model.
        mapped: ``(name in the file, name in the model)`` of those that changed their name.
        reshaped: ``(name, shape in the file, shape in the model)``: initial values kept.
        missing: names of the model that the file lacks.
        left_over: names of the file that the model lacks.
        dropped: names of the file without meaning here (fixed kernels of DAMamba).
    """

    loaded: list[str] = field(default_factory=list)
    mapped: list[tuple[str, str]] = field(default_factory=list)
    reshaped: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return not (self.reshaped or self.missing or self.left_over)

    def lines(self) -> list[str]:
        """The table for the log."""
        total = len(self.loaded) + len(self.reshaped) + len(self.missing)
        lines = [f"{len(self.loaded)} of the model's {total} tensors loaded"]
        if self.mapped:
            lines.append(f"  renamed: {len(self.mapped)} (e.g. {self.mapped[0][0]} -> {self.mapped[0][1]})")
        for name, theirs, ours in self.reshaped[:8]:
            lines.append(f"  re-initialised, other shape: {name} {list(theirs)} in the file, {list(ours)} here")
        if len(self.reshaped) > 8:
            lines.append(f"  re-initialised, other shape: {len(self.reshaped) - 8} more")
        for title, names in (("not in the file, initial values kept", self.missing), ("left over", self.left_over)):
            lines += [f"  {title}: {part} ({n})" for part, n in _by_part(names)]
        if self.dropped:
            lines.append(f"  dropped: {len(self.dropped)} fixed kernels (e.g. {self.dropped[0]})")
        return lines


def _by_part(names: list[str]) -> list[tuple[str, int]]:
    """Names grouped by their first components: ``decoder.gtc_decoder.*`` and how many."""
    if len(names) <= 8:
        return [(name, 1) for name in names]
    counts: dict[str, int] = {}
    for name in names:
        parts = name.split(".")
        depth = 3 if parts[0] == "encoder" else 2
        part = ".".join(parts[:depth]) + (".*" if len(parts) > depth else "")
        counts[part] = counts.get(part, 0) + 1
    return list(counts.items())


def clean_names(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Names without the prefixes of wrappers (``module.``), without DAMamba's ``conv_constant``; and the latter."""
    clean, dropped = {}, []
    for name, value in state_dict.items():
        bare = name
        while bare.startswith(_WRAPPERS):
            bare = bare.split(".", 1)[1]
        if bare.split(".")[-1] == "conv_constant":
            dropped.append(name)
        elif isinstance(value, Tensor):
            clean[bare] = value
    return clean, dropped


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor], source: str = "the file") -> LoadReport:
    """Load every tensor that fits; see ``LoadReport`` for the rest.

    A first-stage head (``decoder.*``) goes into the CTC branch of a GTC model (``decoder.ctc_decoder.*``)
    and back.

    Raises:
        CheckpointError: not one tensor fits.
    """
    theirs, dropped = clean_names(state_dict)
    ours = model.state_dict()
    report, fitting = LoadReport(dropped=dropped), {}
    for name, value in theirs.items():
        here = _name_in(ours, name, theirs)
        if here is None:
            report.left_over.append(name)
        elif ours[here].shape != value.shape:
            report.reshaped.append((here, tuple(value.shape), tuple(ours[here].shape)))
        else:
            fitting[here] = value
            if here != name:
                report.mapped.append((name, here))
    report.loaded = list(fitting)
    seen = set(fitting) | {name for name, *_ in report.reshaped}
    report.missing = [name for name in ours if name not in seen]
    if not fitting:
        raise CheckpointError(
            f"{source}: none of its {len(theirs)} tensors fits this model (e.g. {next(iter(theirs), 'nothing')} there, "
            f"{next(iter(ours), 'nothing')} here). Is it the checkpoint of another architecture?"
        )
    model.load_state_dict(fitting, strict=False)
    return report


def _name_in(ours: Mapping[str, Tensor], name: str, theirs: Mapping[str, Tensor]) -> str | None:
    """The name of ``name`` in the model, as it is or with its head moved; None when it has no place."""
    if name in ours:
        return name
    for old, new in _HEADS:
        moved = new + name[len(old) :] if name.startswith(old) else name
        if moved != name and moved in ours and moved not in theirs:
            return moved
    return None


def load_exactly(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Load all weights, or raise ``CheckpointError`` with what does not fit and what to do."""
    theirs, _ = clean_names(state_dict)
    ours = model.state_dict()
    problems = [f"missing in the file: {n}" for n in ours if n not in theirs]
    problems += [f"not in this model: {n}" for n in theirs if n not in ours]
    problems += [
        f"other shape: {n} {list(theirs[n].shape)} in the file, {list(ours[n].shape)} in this model"
        for n in ours
        if n in theirs and theirs[n].shape != ours[n].shape
    ]
    if problems:
        shown = "\n".join(f"  {p}" for p in problems[:6])
        shown += f"\n  and {len(problems) - 6} more" if problems[6:] else ""
        raise CheckpointError(
            f"{source} belongs to another model:\n{shown}\nTo continue that run, use its own config. To start a new "
            "run from these weights, give the file as Global.pretrained_model instead, with another Global.output_dir."
        )
    model.load_state_dict(theirs)
