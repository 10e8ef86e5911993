"""Every decoder that a shipped YAML names reads pictures, tells scores, and can be explained."""

import functools

import numpy as np
import pytest
import reading_case as case
from small_models import shrink

from openrec import registry
from openrec.charset import Charset
from openrec.checkpoint import save_checkpoint
from openrec.config import load_config
from openrec.errors import ConfigError
from openrec.reading.loading import ModelCard
from openrec.reading.looking import explain
from openrec.reading.word_page import page
from openrec.recognizer import load

ROOT = case.ROOT


def decoders_of(part):
    """Names of the decoders in a ``Decoder`` section, inner ones too."""
    if not isinstance(part, dict):
        return set()
    inner = set().union(*(decoders_of(v) for v in part.values()))
    return inner | ({part["name"]} & set(registry.names("decoder")) if "name" in part else set())


@functools.lru_cache
def cases():
    """(decoder, branch, YAML): for each decoder the smallest YAML that has it, as CTC or alone, and as a guide."""
    files = sorted((ROOT / "configs" / "rec").rglob("*.yml"), key=lambda p: (not p.stem.endswith("_tiny"), p.name))
    found = {}
    for file in files:
        decoder = load_config(file)["Architecture"]["Decoder"]
        if decoder["name"] == "GTCDecoder" and decoder.get("infer_gtc"):
            for name in decoders_of(decoder["gtc_decoder"]):
                found.setdefault((name, "gtc"), file)
        for name in decoders_of(decoder) - decoders_of(decoder.get("gtc_decoder")):
            found.setdefault((name, "ctc"), file)
    return [(name, branch, file) for (name, branch), file in sorted(found.items())]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("p")
    case.write_pictures(folder, 4, broken=(2,), sizes=((100, 30), (60, 30), (90, 32), (110, 26)))
    return folder


@pytest.mark.parametrize(("name", "branch", "file"), cases(), ids=lambda v: getattr(v, "stem", v))
def test_reads_and_explains(name, branch, file, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config(file)
    config["Global"]["device"] = "cpu"
    if config["Global"]["character_dict_path"] and "EN_symbol" not in config["Global"]["character_dict_path"]:
        config["Global"]["character_dict_path"] = None
    if not file.stem.endswith("_tiny"):
        shrink(config["Architecture"])
    charset = Charset.load(config["Global"]["character_dict_path"], config["Global"]["use_space_char"])
    model = ModelCard.from_checkpoint({"config": config, "charset": charset.state()}, "here").build()
    save_checkpoint(
        {"config": config, "charset": charset.state(), "state_dict": model.state_dict()}, tmp_path / "m.pth"
    )
    recognizer = load(tmp_path / "m.pth", device="cpu", branch=branch)
    texts = recognizer(pictures, batch_size=2)
    alone = recognizer(pictures, batch_size=1)
    assert [t.error is not None for t in texts] == [False, False, True, False]
    assert [t.text for t in texts] == [t.text for t in alone]
    for text in texts:
        assert np.isfinite(text.score) and 0 <= text.score <= 1.0001
        assert len(text.char_scores) == len(text.text) or len(text.text) == 0
    found = explain(recognizer, pictures / "000.png")
    assert found.decoded.text == texts[0].text
    assert len(found.maps) in (0, len(found.decoded.positions))
    if (name, branch) == ("SMTRDecoder", "gtc") and found.decoded.text:
        assert found.source == "the decoder's attention"
    html = page(found)
    assert html.endswith("</html>\n") and "http" not in html


def test_an_exported_model_cannot_be_explained(tmp_path):
    recognizer = load(case.checkpoint(tmp_path / "m.pth"))
    recognizer.backend = type("B", (), {"name": "onnxruntime", "run": None})()
    with pytest.raises(ConfigError, match=r"runs as onnxruntime; load its \.pth"):
        explain(recognizer, case.picture(1))
