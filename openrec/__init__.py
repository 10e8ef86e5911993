"""openrec trains, evaluates and ships scene-text recognisers: a cropped photo of a word becomes text.

Start with ``tools/train_rec.py -c configs/rec/svtrv2/svtrv2_mamba_tiny.yml``. The rooms of the
package, in the order in which data flows through them: ``config`` -> ``data`` (with ``preprocess``)
-> ``modeling`` (transforms, encoders, decoders; ``ops`` below them) -> ``losses`` / ``postprocess``
-> ``metrics``; ``engine`` calls them in that order, and only ``tools/`` calls the engine.
"""

from openrec.version import __version__

__all__ = ["__version__"]
