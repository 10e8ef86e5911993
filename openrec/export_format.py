"""What travels inside an exported file (ONNX, safetensors, a packaged program), so that reading needs nothing else.

Three entries of the file's text metadata, each a JSON text:

* ``openrec.config``: the sections of the run's config that say what the model is (``MODEL_SECTIONS``);
* ``openrec.charset``: ``Charset.state()``;
* ``openrec.preprocess``: how a picture becomes the input, ``Preprocessor.state()``.

``openrec.format`` is the version of this layout.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from openrec.errors import CheckpointError

CONFIG = "openrec.config"
CHARSET = "openrec.charset"
PREPROCESS = "openrec.preprocess"
FORMAT = "openrec.format"
VERSION = "1"

MODEL_SECTIONS = ("Architecture", "PostProcess")
# Of ``Global``: nothing that tells where files lay on somebody's disk, except the dictionary's name.
GLOBAL_KEYS = ("character_dict_path", "use_space_char", "max_text_length")

INPUT_NAME, OUTPUT_NAME = "input", "output"  # of an exported graph: [B, 3, H, W] -> probabilities [B, T, classes]


def model_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a run's config that a reader of its model needs."""
    own = {name: config[name] for name in MODEL_SECTIONS if name in config}
    settings = config.get("Global") or {}
    return {"Global": {k: settings[k] for k in GLOBAL_KEYS if k in settings}, **own}


def pack(config: Mapping[str, Any], charset: Mapping[str, Any], preprocess: Mapping[str, Any]) -> dict[str, str]:
    """Text metadata for a file: all keys and values are texts."""
    parts = {CONFIG: model_config(config), CHARSET: charset, PREPROCESS: preprocess}
    return {FORMAT: VERSION, **{key: json.dumps(value, ensure_ascii=False) for key, value in parts.items()}}


def unpack(metadata: Mapping[str, str] | None, where: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """``(config, charset, preprocess)`` of a file's metadata.

    Args:
        where: the file, for messages.

    Raises:
        CheckpointError: an entry is missing, damaged, or of a later version.
    """
    metadata = metadata or {}
    missing = [key for key in (CONFIG, CHARSET, PREPROCESS) if key not in metadata]
    if missing:
        raise CheckpointError(
            f'"{where}" does not say what it reads: its metadata lack {", ".join(missing)}. Expected a file made by '
            "tools/export_rec.py; for another one give config=... with the YAML it was trained with."
        )
    if metadata.get(FORMAT, VERSION) != VERSION:
        raise CheckpointError(
            f'"{where}" has metadata of format {metadata[FORMAT]}, this openrec reads {VERSION}. Update openrec.'
        )
    try:
        config, charset, preprocess = (json.loads(metadata[key]) for key in (CONFIG, CHARSET, PREPROCESS))
    except ValueError as error:
        raise CheckpointError(f'"{where}": its metadata are not JSON ({error}). Export it again.') from error
    return config, charset, preprocess
