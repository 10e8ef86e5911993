"""From a file, or a name in a weights folder, to a model that can read."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from openrec import export_format
from openrec.charset import Charset
from openrec.checkpoint import load_weights, read_checkpoint
from openrec.config import load_config, resolve_charset
from openrec.errors import CheckpointError, ConfigError
from openrec.modeling import build_model
from openrec.postprocess import build_post_process
from openrec.reading.backends import EXPORTED, TorchBackend, open_exported
from openrec.reading.preprocessing import Preprocessor
from openrec.registry import nearest

SUFFIXES = (".safetensors", ".pth", ".onnx", ".pt2")
_ROOT = Path(__file__).resolve().parents[2]


@dataclass
class ModelCard:
    """What a model file says about itself.

    Attributes:
        config: at least ``Architecture`` and ``PostProcess``.
        charset: the characters it reads.
        preprocess: how a picture becomes its input.
    """

    config: dict[str, Any]
    charset: Charset
    preprocess: Preprocessor

    @classmethod
    def from_checkpoint(
        cls, state: Mapping[str, Any], where: str, config: Mapping[str, Any] | None = None
    ) -> ModelCard:
        """Of what ``read_checkpoint`` returned; ``config`` stands above the stored one.

        Raises:
            CheckpointError: neither holds a config, or their characters differ.
        """
        config = config if config is not None else state.get("config")
        if not config or "Architecture" not in config or "PostProcess" not in config:
            raise CheckpointError(
                f'"{where}" holds weights and no config, so nothing says what to build. Give the YAML it was trained '
                'with: openrec.load(path, config="config.yml"), or -c config.yml on the command line.'
            )
        stored = state.get("charset")
        charset = Charset.from_state(stored) if stored else _charset_of(config, where)
        return cls(dict(config), charset, Preprocessor.from_config(config))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str] | None, where: str) -> ModelCard:
        config, charset, preprocess = export_format.unpack(metadata, where)
        return cls(config, Charset.from_state(charset), Preprocessor.from_state(preprocess))

    def metadata(self) -> dict[str, str]:
        """Texts for an export's metadata (``openrec.export_format``)."""
        return export_format.pack(self.config, self.charset.state(), self.preprocess.state())

    def post_process(self) -> Any:
        """The post-processor; the CTC one alone for a GTC model that was built without its guide."""
        config = dict(self.config["PostProcess"])
        decoder = self.config["Architecture"].get("Decoder") or {}
        if config.get("name") == "GTCLabelDecode" and not decoder.get("infer_gtc", False):
            config = {"name": "CTCLabelDecode"}
        return build_post_process(config, self.config.get("Global"), self.charset)

    def build(self) -> nn.Module:
        """The model with initial weights."""
        architecture = copy.deepcopy(dict(self.config["Architecture"]))
        architecture["Decoder"]["out_channels"] = self.post_process().get_character_num()
        return build_model(architecture)


def _charset_of(config: Mapping[str, Any], where: str) -> Charset:
    """Of a file that does not hold its characters (made by OpenOCR): from the dictionary that its config names."""
    config = {**config, "Global": config.get("Global") or {}}
    try:
        return resolve_charset(config)
    except ConfigError as error:
        raise CheckpointError(
            f'"{where}" does not hold its characters, and the dictionary its config names cannot be read:\n{error}\n'
            "Put the dictionary there, or give config=... with the right Global.character_dict_path."
        ) from error


def weights_folders() -> list[Path]:
    """Where names are looked up: ``$OPENREC_WEIGHTS``, ``./weights``, ``weights`` beside the package, a wheel's own."""
    own = [Path(p).expanduser() for p in os.environ.get("OPENREC_WEIGHTS", "").split(os.pathsep) if p]
    return list(dict.fromkeys([*own, Path("weights"), _ROOT / "weights", _ROOT / "openrec" / "weights"]))


def find_model(path_or_name: str | Path) -> Path:
    """The file of a path, of a run's directory (its ``best.pth``, else ``latest.pth``), or of a name.

    Raises:
        CheckpointError: no such file; lists the names there are.
    """
    path = Path(path_or_name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        for name in ("best.pth", "latest.pth"):
            if (path / name).is_file():
                return path / name
        raise CheckpointError(f'"{path}" is a directory without best.pth or latest.pth. Give the file itself.')
    for folder in weights_folders():
        for suffix in ("", *SUFFIXES):
            file = folder / (str(path_or_name) + suffix)
            if file.is_file():
                return file
    names = sorted({p.stem for folder in weights_folders() if folder.is_dir() for p in _models(folder)})
    hint = nearest(str(path_or_name), names) if names else " There is no weights folder with models either."
    raise CheckpointError(
        f'no model "{path_or_name}": neither a file (working directory: {Path.cwd()}) nor a name in '
        f"{', '.join(str(f) for f in weights_folders())}.{hint}"
    )


def _models(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.suffix in SUFFIXES]


def open_model(
    path_or_name: str | Path,
    *,
    config: str | Path | Mapping[str, Any] | None = None,
    device: torch.device,
    amp: bool = False,
    compile: bool = False,
) -> tuple[ModelCard, Any, Path]:
    """``(card, backend, file)`` of a checkpoint or an exported model.

    Args:
        config: a YAML or a loaded config that stands above the one in the file.

    Raises:
        OpenRecError: file or config that cannot be used; weights that do not fill the model.
    """
    file = find_model(path_or_name)
    if isinstance(config, (str, Path)):
        config = load_config(config)
    if file.suffix in EXPORTED:
        backend = open_exported(file, file.suffix, device)
        return _exported_card(backend.metadata, str(file), config), backend, file
    state = read_checkpoint(file)
    card = _card(state, file, config)
    model = card.build()
    weights = (state.get("ema") or {}).get("state_dict") or state["state_dict"]
    report = load_weights(model, weights, f'checkpoint "{file}"')
    if report.missing or report.reshaped:
        raise CheckpointError(
            f'"{file}" does not fill the model that its config describes:\n' + "\n".join(report.lines())
        )
    return card, TorchBackend(model, device, amp=amp, compile=compile), file


def _exported_card(metadata: Mapping[str, str], where: str, config: Mapping[str, Any] | None) -> ModelCard:
    if export_format.CONFIG in metadata or config is None:
        return ModelCard.from_metadata(metadata, where)
    return ModelCard.from_checkpoint({}, where, config)


def _card(state: Mapping[str, Any], file: Path, config: Mapping[str, Any] | None) -> ModelCard:
    if file.suffix == ".safetensors" and config is None:
        from safetensors import safe_open

        with safe_open(str(file), "pt") as opened:
            return ModelCard.from_metadata(opened.metadata(), str(file))
    card = ModelCard.from_checkpoint(state, str(file), config)
    if state.get("charset") and config is not None and (config.get("Global") or {}).get("character_dict_path"):
        own = _charset_of(config, str(file))
        if own.characters != card.charset.characters:
            raise CheckpointError(
                f'"{file}" was trained with another dictionary ({len(card.charset)} characters from '
                f'"{card.charset.source or "0-9a-z"}") than the config names ({len(own)} from "{own.source}"). '
                "Leave the config out, or give the one it was trained with."
            )
    return card
