"""From a decoder's predictions to texts with scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openrec import registry
from openrec.charset import Charset

__all__ = ["build_post_process"]


def build_post_process(
    config: Mapping[str, Any], global_config: Mapping[str, Any] | None = None, charset: Charset | None = None
) -> Any:
    """The post-processor of ``PostProcess``.

    ``global_config`` fills ``character_dict_path`` and ``use_space_char`` where ``config`` leaves them open; the
    run's ``charset``, when given, stands above both.
    """
    context = {k: v for k, v in (global_config or {}).items() if k in ("character_dict_path", "use_space_char")}
    return registry.build("postprocess", config, "PostProcess", **context, charset=charset)
