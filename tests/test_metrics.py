"""Metrics against stored numbers, and sums over several processes."""

import json
from pathlib import Path

import pytest

from openrec.metrics import build_metric
from openrec.metrics.text_pairs import merge_windows

GOLDEN = json.loads((Path(__file__).parent / "golden" / "metrics.json").read_text(encoding="utf-8"))
PAIRS = GOLDEN["pairs"]


def lists(pairs):
    return [(p, 0.5) for p, _ in pairs], [(t, 1.0) for _, t in pairs]


def build(case):
    return build_metric({"name": case["name"], **case["args"]})


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: f"{c['name']}-{'-'.join(map(str, c['args'].values()))}")
def test_equals_reference(case):
    metric = build(case)
    if "ratios" in case:
        assert metric(lists(PAIRS), [None, case["ratios"]]) == case["batch"]
    elif "gtc_pairs" in case:
        gtc, ctc = (PAIRS[slice(*case[k])] for k in ("gtc_pairs", "ctc_pairs"))
        assert metric([lists(gtc), lists(ctc)]) == case["batch"]
    else:
        assert [metric(lists([pair])) for pair in PAIRS] == case["per_pair"]
        metric.get_metric()
        assert metric(lists(PAIRS[:7])) == case["batch_0_7"]
        assert metric(lists(PAIRS[7:])) == case["batch_7_end"]
    totals = metric.get_metric()
    assert totals == case["total"] and list(totals) == list(case["total"])
    assert metric.get_metric()["num_samples"] == 0


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: f"{c['name']}-{'-'.join(map(str, c['args'].values()))}")
def test_two_processes_add_up(case):
    def feed(metric, part):
        data = lists(PAIRS[part])
        metric([data, data] if case["name"] == "RecGTCMetric" else data, [None, case.get("ratios", [1] * 20)[part]])

    whole, one, two = build(case), build(case), build(case)
    feed(whole, slice(0, 20))
    feed(one, slice(0, 7))
    feed(two, slice(7, 20))
    one.merge(json.loads(json.dumps(two.state())))
    assert one.counts() == whole.counts() and one.counts()["total"] == 20
    ours, theirs = one.get_metric(), whole.get_metric()
    assert {k: pytest.approx(v) for k, v in theirs.items()} == ours


def test_counts_are_exact():
    metric = build_metric({"name": "RecMetric"})
    metric(lists([("a", "A"), ("b c", "bc")]))
    assert metric.counts() == {"correct": 2, "total": 2, "emptied": 0}


def test_filter_that_leaves_nothing_is_told(caplog):
    metric = build_metric({"name": "RecMetric", "is_filter": True})
    metric(lists([("你好", "你"), ("abc", "abd"), ("!!!", "!!!")]))
    assert metric.counts() == {"correct": 2, "total": 3, "emptied": 1}
    metric.get_metric()
    assert "1 of 3 pairs differ" in caplog.text


def test_gtc_may_keep_the_case():
    for is_lower, correct in ((True, 1), (False, 0)):
        metric = build_metric({"name": "RecGTCMetric", "is_lower": is_lower})
        metric([lists([("a", "A")]), lists([("a", "A")])])
        assert metric.counts() == {"correct": correct, "total": 1, "emptied": 0, "gtc_correct": correct}


def test_stream():
    assert merge_windows(["recogx", "xgnitix", "xion"]) == "recogniti" + "on"
    assert merge_windows(["word"]) == "word" and merge_windows([]) == ""
    for name in ("RecMetric", "RecMetricLong"):
        metric = build_metric({"name": name, "stream": True})
        numbers = metric(([("recogx", 1.0), ("xognx", 1.0), ("xnition", 1.0)], [("recognition", 1.0)]))
        assert numbers["acc"] == pytest.approx(1, abs=1e-4)


def test_long():
    metric = build_metric({"name": "RecMetricLong", "is_filter": True})
    target = "ab" * 150
    metric(lists([("A b!", "ab"), ("ab", "abc"), ("axc", "abc"), ("", ""), (target, target)]))
    got = metric.get_metric()
    assert got["all_num"] == 5 and sum(got["each_len_num"]) == 5 and len(got["each_len_num"]) == 201
    assert got["each_len_num"][200] == 1 and got["each_len_num"][0] == 1
    assert [round(got[k] * 5) for k in ("acc", "acc_slice", "f_l_acc", "len_acc")] == [3, 4, 4, 4]
    assert got["norm_edit_dis"] == pytest.approx(1 - (1 / 3 + 1 / 3) / 5, abs=1e-5)
