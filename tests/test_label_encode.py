"""Label encoders against stored reference labels, and what random replacement may and may not do."""

import json
from pathlib import Path

import numpy as np
import pytest

from openrec import registry
from openrec.charset import Charset
from openrec.errors import ConfigError, SampleError
from openrec.preprocess.label_encode import (
    CELabelEncode,
    CTCLabelEncode,
    EPLabelEncode,
    GTCLabelEncode,
    SMTRLabelEncode,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "label_encode.json").read_text(encoding="utf-8"))
ABC = Charset(tuple("abcdefghijklmnopqrstuvwxyz"))
NUMBER = {c: i + 1 for i, c in enumerate(ABC.characters)}


def build(entry):
    args = dict(entry["args"])
    del args["character_dict_path"]
    space = (" ",) if args["use_space_char"] else ()
    if args.get("gtc_label_encode", {}).get("name") == "ARLabelEncode":
        args["gtc_label_encode"] = {"name": "ARLabelEncode"}
    return registry.build("op", {"name": entry["name"], **args}, charset=Charset((*GOLDEN["dictionary"], *space)))


def same(encoded, want):
    """Compare all that is not random."""
    rows = want["length"] + 1
    for key, value in want.items():
        if key in ("label", "length", "ctc_label", "ctc_length"):
            assert np.array_equal(encoded[key], value), key
            assert encoded[key].dtype == np.int64
        elif key in ("base_subs", "base_subs_pre"):
            assert encoded[key.replace("base", "label")][:rows].tolist() == value, key
        elif key in ("label_next", "label_next_pre"):
            assert encoded[key][:rows].tolist() == value[:rows], key
        elif key == "padded_rows":
            assert encoded["label_subs"].shape[0] == encoded["label_next_pre"].shape[0] == value
        elif key == "label_ace_nonzero":
            assert [[i, n] for i, n in enumerate(encoded["label_ace"].tolist()) if n] == value


@pytest.mark.parametrize("entry", GOLDEN["encoders"], ids=lambda e: f"{e['name']}-{e['args']['use_space_char']}")
def test_equals_reference(entry):
    encoder = build(entry)
    if "num_classes" in entry:
        assert encoder.num_classes == entry["num_classes"]
    for text, want in zip(GOLDEN["strings"], entry["results"]):
        if want is None:
            with pytest.raises(SampleError) as error:
                encoder({"label": text})
            assert encoder.refuses(text) == str(error.value)
        else:
            assert encoder.refuses(text) is None
            same(encoder({"label": text, "rng": np.random.default_rng(0)}), want)


def smtr(text, perturb="copy", training=True, seed=0):
    encoder = SMTRLabelEncode(25, charset=ABC, perturb=perturb)
    out = encoder({"label": text, "rng": np.random.default_rng(seed), "training": training})
    rows = int(out["length_subs"])
    return out["label_subs"][:rows], out["label_next"][:rows], out


def test_smtr_example():
    f, b, end = 28, 29, 0  # <INF>, <INB>, </s>
    _, _, out = smtr("abc")
    assert out["label_subs"][:4].tolist() == [[f] * 5, [f] * 4 + [1], [f] * 3 + [1, 2], [f] * 2 + [1, 2, 3]]
    assert out["label_next"][:5].tolist() == [1, 2, 3, end, 30]
    assert out["label_subs_pre"][:4].tolist() == [[b] * 5, [3] + [b] * 4, [2, 3] + [b] * 3, [1, 2, 3] + [b] * 2]
    assert out["label_next_pre"][:5].tolist() == [3, 2, 1, end, 30]
    assert (out["length_subs"], out["length_subs_pre"], out["length"]) == (4, 4, 3)


@pytest.mark.parametrize("seed", range(20))
def test_smtr_copies_differ_in_one_character(seed):
    text = "recognition"
    clean, following, _ = smtr(text, "none")
    subs, targets, _ = smtr(text, "copy", seed=seed)
    n = len(text) + 1
    assert np.array_equal(subs[:n], clean) and np.array_equal(targets[:n], following)
    assert n < len(subs) <= 2 * n - 5
    for row, target in zip(subs[n:], targets[n:]):
        sources = [i for i in range(5, n) if (clean[i] != row).sum() == 1 and following[i] == target]
        assert sources and row.min() >= 1 and row.max() <= 26
    assert len({tuple(r) for r in subs.tolist()}) == len(subs)


def test_smtr_openocr_leaves_few_full_contexts_intact():
    clean, _, _ = smtr("recognition", "none")
    intact = [np.array_equal(smtr("recognition", "openocr", seed=s)[0][7], clean[7]) for s in range(50)]
    assert sum(intact) < 10  # only where the drawn character is the one that stood there
    changed = [(smtr("recognition", "openocr", seed=s)[0][:12] != clean).sum(1) for s in range(50)]
    assert max(int(c.max()) for c in changed) == 1
    assert all((c[:5] == 0).all() for c in changed)  # sub-strings with fill are left alone


def test_smtr_evaluation_is_not_random():
    assert np.array_equal(smtr("recognition", training=False)[0], smtr("recognition", "none")[0])
    assert np.array_equal(smtr("recognition", seed=3)[0], smtr("recognition", seed=3)[0])
    longest = SMTRLabelEncode(25, charset=ABC)({"label": "abcdefghijklmnopqrstuvwxy"})
    assert longest["length_subs"] <= len(longest["label_subs"])
    with pytest.raises(ConfigError, match="perturb"):
        SMTRLabelEncode(25, charset=ABC, perturb="yes")


def test_reasons():
    encoder = CTCLabelEncode(3, charset=ABC)
    assert encoder.refuses("") == "label is empty"
    assert encoder.refuses("!?") == "no character of the label is in the dictionary"
    assert encoder.refuses("abcd") == "label longer than max_text_length 3"
    assert encoder.refuses("a!b!c") is None
    assert CELabelEncode(3, charset=ABC).refuses("a!b!") == "label longer than max_text_length 3"


def test_without_a_dictionary_labels_are_lower_cased():
    assert CTCLabelEncode(4)({"label": "A9"})["label"].tolist() == [11, 10, 0, 0]


def test_ce_and_ep():
    assert CELabelEncode(3, charset=ABC)({"label": "cab"})["label"].tolist() == [2, 0, 1]
    assert EPLabelEncode(4, charset=ABC)({"label": "cab"})["label"].tolist() == [3, 1, 2, 0, 27]


def test_gtc_inner_arguments_win():
    inner = {"name": "ARLabelEncode", "max_text_length": 9}
    encoder = GTCLabelEncode(inner, max_text_length=5, charset=ABC)
    out = encoder({"label": "abc", "other": 1})
    assert out["label"].shape == (11,) and out["ctc_label"].shape == (5,) and out["other"] == 1
    assert out["ctc_length"] == 3
    assert encoder.refuses("abcdef") == "label longer than max_text_length 5"
