"""Post-processors against stored texts and scores."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from openrec.charset import Charset
from openrec.errors import ConfigError
from openrec.postprocess import build_post_process
from openrec.postprocess.ctc_postprocess import reverse_runs

FOLDER = Path(__file__).parent / "golden"
GOLDEN = json.loads((FOLDER / "label_decode.json").read_text(encoding="utf-8"))
ARRAYS = dict(np.load(FOLDER / "label_decode_arrays.npz"))
DICTIONARY = json.loads((FOLDER / "label_encode.json").read_text(encoding="utf-8"))["dictionary"]
ABC = Charset(tuple("abcdefgh"))


def build(case, **extra):
    config = {"name": case["name"], **{k: case[k] for k in ("only_gtc", "next_mode") if k in case}, **extra}
    if case["name"] == "GTCLabelDecode":
        config["gtc_label_decode"] = {"name": "SMTRLabelDecode"}
    return build_post_process(config, charset=Charset((*DICTIONARY, *([" "] if case["use_space_char"] else []))))


def equal(got, want):
    """Texts and float32 scores to the last bit; a null score is not a number."""
    if len(want) == 2 and isinstance(want[0], str):
        return got[0] == want[0] and (math.isnan(got[1]) if want[1] is None else got[1] == want[1])
    return len(got) == len(want) and all(equal(a, b) for a, b in zip(got, want))


@pytest.mark.parametrize("as_tensor", [True, False])
@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: f"{c['name']}-{c['num_classes']}")
def test_equals_reference(case, as_tensor):
    decode = build(case)
    assert decode.get_character_num() == case["num_classes"]
    arrays = {k: torch.from_numpy(v) if as_tensor else v for k, v in ARRAYS.items()}
    if case["name"] == "GTCLabelDecode":
        preds = {"gtc_pred": arrays[case["gtc_preds"]], "ctc_pred": arrays[case["ctc_preds"]]}
        batch = [None, arrays[case["gtc_label"]], None, arrays[case["ctc_label"]], None]
        assert equal(decode(preds, batch, torch_tensor=as_tensor), case["result"])
        assert equal(decode(preds, torch_tensor=as_tensor), case["result_without_batch"])
        return
    preds = arrays[case["preds"]]
    if "label" in case:
        texts, labels = decode(preds, [None, arrays[case["label"]]], torch_tensor=as_tensor)
        assert equal(texts, case["text"]) and equal(labels, case["label_text"])
    assert equal(decode(preds, torch_tensor=as_tensor), case.get("text_without_batch", case.get("text")))


def frames(*rows, classes=9):
    """Probabilities whose best classes are ``rows`` with probability 0.5, 0.6, 0.7, ..."""
    preds = torch.zeros(len(rows), len(rows[0]), classes)
    for b, row in enumerate(rows):
        for t, number in enumerate(row):
            preds[b, t, number] = 0.5 + 0.1 * t
    return preds


def test_ctc_details():
    decode = build_post_process({"name": "CTCLabelDecode"}, charset=ABC)
    first, empty = decode.decode_detailed(frames([1, 1, 0, 1, 2], [0, 0, 0, 0, 0]))
    assert first.text == "aab" and first.positions == [0, 3, 4]
    assert first.char_scores == pytest.approx([0.5, 0.8, 0.9]) and first.score == pytest.approx(2.2 / 3)
    assert empty == ("", 0.0, [], [])


def test_bfloat16_and_gradients():
    decode = build_post_process({"name": "CTCLabelDecode"}, charset=ABC)
    preds = frames([1, 0, 2]).requires_grad_().bfloat16()
    assert decode(preds)[0][0] == "ab"


def test_empty_autoregressive_text():
    decode = build_post_process({"name": "ARLabelDecode"}, charset=ABC)
    preds = frames([0, 1, 2])
    assert math.isnan(decode(preds)[0][1]) and decode.decode_detailed(preds)[0].score == 0.0
    assert decode([torch.zeros(1), frames([2, 1, 0, 3])])[0] == ("ba", pytest.approx(0.55))
    assert decode.labels([None, torch.tensor([[9, 1, 2, 0, 10]])]) == [("ab", 1.0)]


def test_nrtr_and_ar_share_a_table():
    one, two = (build_post_process({"name": n}, charset=ABC) for n in ("NRTRLabelDecode", "ARLabelDecode"))
    assert one.get_character_num() == two.get_character_num() == 11
    assert one(frames([2, 1, 0])) == two(frames([2, 1, 0]))


def test_smtr_backwards_details():
    decode = build_post_process({"name": "SMTRLabelDecode", "next_mode": False}, charset=ABC)
    (item,) = decode.decode_detailed(frames([1, 2, 0], classes=10))
    assert item.text == "ba" and item.positions == [1, 0] and item.char_scores == pytest.approx([0.6, 0.5])


def test_ce():
    decode = build_post_process({"name": "CELabelDecode"}, charset=ABC)
    assert decode.get_character_num() == 8
    assert decode(frames([1, 2], classes=8)[0]) == [("b", 0.5), ("c", pytest.approx(0.6))]
    assert decode.decode_detailed(frames([1, 2], classes=8))[0].text == "bc"
    assert decode.labels([None, torch.tensor([[1], [3]])]) == [("b", 1.0), ("d", 1.0)]


def test_gtc_branches():
    decode = build_post_process({"name": "GTCLabelDecode", "gtc_label_decode": {"name": "ARLabelDecode"}}, charset=ABC)
    preds = {"gtc_pred": frames([2, 1, 0]), "ctc_pred": frames([1, 1, 2])}
    assert [decode.decode_detailed(preds, b)[0].text for b in ("ctc", "gtc")] == ["ab", "ba"]
    assert decode.decode_detailed(preds["ctc_pred"])[0].text == "ab"  # a model without its guide
    with pytest.raises(ConfigError, match="infer_gtc"):
        decode(preds["ctc_pred"])
    ratio = build_post_process(
        {"name": "GTCLabelDecode", "gtc_label_decode": {"name": "ARLabelDecode"}, "with_ratio": True}, charset=ABC
    )
    label, ctc = torch.tensor([[9, 3, 0, 10]]), torch.tensor([[3, 0]])
    result = ratio(preds, [None, label, None, ctc, None, torch.tensor([4])])
    assert [branch[1] for branch in result] == [[("c", 1.0)], [("c", 1.0)]]


def test_charset_comes_from_global():
    path = str(Path(__file__).parents[1] / "tools/utils/EN_symbol_dict.txt")
    decode = build_post_process({"name": "SMTRLabelDecode"}, {"character_dict_path": path, "use_space_char": True})
    assert decode.get_character_num() == 100
    # without use_space_char, encoders and decoders agree that there is none
    assert build_post_process({"name": "ARLabelDecode"}, {"character_dict_path": path}).get_character_num() == 97


def test_arabic_runs():
    assert reverse_runs("ابج abc 12") == " abc 12" + "جبا"
    arabic = Charset(tuple("ابج12"), source="dict/arabic_dict.txt")
    decode = build_post_process({"name": "CTCLabelDecode"}, charset=arabic)
    assert decode(frames([1, 2, 4, 5], classes=6))[0][0] == "12با"
    assert decode.decode_detailed(frames([1, 2, 4, 5], classes=6))[0].positions == [2, 3, 1, 0]  # with their characters
    assert decode.labels([None, torch.tensor([[1, 2, 4, 5, 0]])]) == [("12با", 1.0)]
