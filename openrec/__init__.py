"""openrec trains, evaluates and ships scene-text recognisers: a cropped photo of a word becomes text.

Start with ``tools/train_rec.py -c configs/rec/svtrv2/svtrv2_mamba_tiny.yml``. The rooms of the
package, in the order in which data flows through them: ``config`` -> ``data`` (with ``preprocess``)
-> ``modeling`` (transforms, encoders, decoders; ``ops`` below them) -> ``losses`` / ``postprocess``
-> ``metrics``; ``engine`` calls them in that order, and only ``tools/`` calls the engine.
``openrec.load(path)`` gives a ``Recognizer`` that reads pictures with a trained model.
"""

from typing import Any

from openrec.version import __version__

__all__ = ["Recognizer", "Text", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # torch is imported once something is read, not by ``import openrec``
    if name in ("Recognizer", "Text", "load"):
        from openrec import recognizer

        return getattr(recognizer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
