"""The benchmark scripts: sets, both numbers, CSV layout, Markdown, intervals, latency."""

import copy
import csv

import engine_case
import numpy as np
import pytest
import reading_case as case
from small_models import shrink

from openrec.charset import Charset
from openrec.config import load_config
from openrec.engine import latency
from openrec.engine.benchmark import config_of_checkpoint, prepare_config, run_benchmark
from openrec.engine.benchmark_sets import CHINESE, ENGLISH, LONG, find_sets
from openrec.engine.benchmark_tables import interval, markdown, weighted, write_csv
from openrec.errors import ConfigError, DataError
from openrec.metrics.interval import wilson


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A checkpoint and two benchmark sets of the English script, one of which holds labels outside its rule."""
    root = tmp_path_factory.mktemp("sets")
    engine_case.write_words(root / "data/test/IIIT5k", 7)
    engine_case.write_words(root / "data/SVT", 5, seed=3)
    import lmdb

    with lmdb.open(str(root / "data/SVT"), map_size=1 << 24) as env, env.begin(write=True) as txn:
        txn.put(b"label-%09d" % 2, b"!?")  # nothing is left of it under the rule
        txn.put(b"image-%09d" % 3, b"no picture")
    config = case.config(Eval__dataset__data_dir_list=["nowhere"])
    config["Global"] |= {"output_dir": str(root / "out")}
    case.checkpoint(root / "best.pth", config)
    return root


def config_in(world):
    return config_of_checkpoint(world / "best.pth", {"output_dir": str(world / "out")})


def test_wilson_interval():
    # Brown, Cai, DasGupta (2001): 0 of 10 and 9 of 10
    assert wilson(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert wilson(9, 10) == pytest.approx((0.59585, 0.98212), abs=1e-5)
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(973, 1000)
    assert low < 0.973 < high and high <= 1
    assert interval(9, 10) == "90.00 [59.58, 98.21]" and interval(0, 0) == "-"


def test_sets_are_those_of_openocr():
    assert [len(v) for v in ENGLISH.values()] == [6, 7, 2, 3]
    assert [p.rsplit("/", 1)[-1] for p in CHINESE["BCTR"]] == [
        "scene_test", "web_test", "document_test", "handwriting_test"]  # fmt: skip


def test_sets_are_found_by_place_name_or_argument(world, tmp_path):
    places = {p.name: p for p in find_sets(ENGLISH, world / "data", [f"mine={tmp_path}"])}
    assert places["IIIT5k"].path == world / "data/test/IIIT5k"
    assert places["SVT"].path == world / "data/SVT"
    assert places["curve"].path is None and len(places["curve"].tried) == 2
    assert places["mine"].group == "own"
    assert [p.name for p in find_sets(ENGLISH, only=["OST"])] == ["weak", "heavy"]
    with pytest.raises(DataError, match="not found"):
        find_sets(ENGLISH, given=["SVT=/nowhere"])
    with pytest.raises(DataError, match="expected NAME=PATH"):
        find_sets(ENGLISH, given=["SVT"])
    with pytest.raises(DataError, match='Did you mean "Union14M"'):
        find_sets(ENGLISH, only=["union14"])


def test_both_numbers_of_every_set(world):
    benchmark = run_benchmark(config_in(world), find_sets(ENGLISH, world / "data"))
    first, second = benchmark.results
    assert (first.samples(), first.samples(rule=True)) == (7, 7)
    assert (second.samples(), second.samples(rule=True)) == (5, 3)  # an empty label, an unreadable picture
    assert len(benchmark.missing) == 16
    assert all(0 <= r.correct() <= r.samples() for r in benchmark.results)
    text = markdown(benchmark)
    assert "| SVT | 5 |" in text and "* curve: not found in" in text and "common, mean of the sets" in text


def test_csv_has_openocrs_rows(world, tmp_path):
    benchmark = run_benchmark(config_in(world), find_sets(ENGLISH, world / "data", only=["common"]))
    write_csv(benchmark, tmp_path / "x.csv", "en", rule=True)
    rows = list(csv.reader((tmp_path / "x.csv").open()))
    series = [f"each_{by}_{what}" for by in ("len", "ratio") for what in ("num", "acc", "norm_edit_dis")]
    assert rows[0] == [str(world / "data/test/IIIT5k")] and [r[0] for r in rows[1:7]] == series
    assert [len(r) for r in rows[1:7]] == [26] * 3 + [13] * 3
    assert rows[14] == ["-", "IIIT5k", "SVT", "arithmetic_avg", "weighted_avg"]
    assert rows[15] == ["", "7", "3"]
    assert [r[0] for r in rows[16:24]] == [
        "acc", "norm_edit_dis", "acc_real", "acc_lower", "acc_ignore_space", "acc_ignore_space_lower",
        "acc_ignore_space_symbol", "acc_ignore_space_lower_symbol"]  # fmt: skip
    assert [r[0] for r in rows[24:]] == series
    assert sum(map(int, rows[24][1:])) == 10
    write_csv(benchmark, tmp_path / "ch.csv", "ch", rule=False)
    names = [r[0] for r in csv.reader((tmp_path / "ch.csv").open())]
    assert "acc_lower" not in names and "acc_ignore_space_lower" not in names


def test_long_lines(world, tmp_path):
    places = find_sets(LONG, world / "data", [f"long_lmdb={world / 'data/SVT'}"])
    benchmark = run_benchmark(config_in(world), places, "long")
    write_csv(benchmark, tmp_path / "long.csv", "long", rule=False)
    rows = {r[0]: r[1:] for r in csv.reader((tmp_path / "long.csv").open())}
    assert len(rows["each_len_num"]) == 175 and rows["each_len_acc56"] == ["nan", "0"]
    assert set(rows) >= {"acc", "norm_edit_dis", "each_len_norm_edit_dis26_35", "each_len_acc36_55"}


def test_list_files_of_long_lines(world, tmp_path):
    case.write_pictures(tmp_path, 3)
    (tmp_path / "ultra_long_26_35_list.txt").write_text("".join(f"00{i}.png\t{'word' * 7}\n" for i in range(3)))
    config = config_in(world)
    config["Eval"]["dataset"]["transforms"].insert(1, {"RecTVResize": {"image_shape": [32, 96]}})
    places = find_sets({"LTB": ("ltb/ultra_long_26_35_list.txt",)}, tmp_path)
    benchmark = run_benchmark(config, places, "long_simple")
    assert benchmark.results[0].samples() == 3 and "max_len" not in config["Architecture"]["Decoder"]


def test_what_the_scripts_change(world):
    config = prepare_config(config_in(world), "en")
    assert config["Eval"]["dataset"]["name"] == "RatioDataSetTVResizeTest"
    assert config["Eval"]["dataset"]["transforms"][-1]["KeepKeys"]["keep_keys"][-1] == "real_ratio"
    assert prepare_config(config_in(world), "ch")["Eval"]["dataset"]["name"] == "RatioDataSetTVResize"
    gtc = config_in(world)
    gtc["PostProcess"] = {"name": "GTCLabelDecode", "gtc_label_decode": {"name": "SMTRLabelDecode"}}
    gtc["Architecture"]["Decoder"] = {"name": "GTCDecoder", "infer_gtc": True, "gtc_decoder": {}, "ctc_decoder": {}}
    assert prepare_config(gtc, "en")["PostProcess"]["with_ratio"] is True
    long = prepare_config(gtc, "long")
    assert long["PostProcess"] == {"name": "CTCLabelDecode"} and long["Metric"]["name"] == "RecMetricLong"
    synthetic = config_in(world)
    synthetic["Eval"]["dataset"] = {"name": "SyntheticWords", "size": 9, "strength": 0.5, "transforms": [
        {"RecTVResize": {}}, {"KeepKeys": {"keep_keys": ["image"]}}]}  # fmt: skip
    dataset = prepare_config(synthetic, "en")["Eval"]["dataset"]
    assert dataset["name"] == "LMDBDataSetTest" and "DecodeImagePIL" in dataset["transforms"][0]
    assert set(dataset) == {"name", "transforms"}  # what only rendered words know would be refused
    synthetic["Eval"] = None
    with pytest.raises(ConfigError, match="Eval"):
        prepare_config(synthetic, "en")


@pytest.mark.parametrize("kind", ["en", "ch", "long"])
def test_a_model_with_two_branches(kind, world, tmp_path, monkeypatch):
    """Scores of both branches for words; long lines are scored on CTC alone, from the same checkpoint."""
    monkeypatch.chdir(case.ROOT)
    config = load_config("configs/rec/svtrv2/svtrv2_smtr_gtc_rctc.yml", ["Global.device=cpu"])
    shrink(config["Architecture"])
    charset = Charset.load(config["Global"]["character_dict_path"])
    config["Eval"]["loader"]["num_workers"] = 0
    config["Global"]["pretrained_model"] = str(case.checkpoint(tmp_path / "gtc.pth", copy.deepcopy(config), charset))
    places = find_sets(LONG if kind == "long" else ENGLISH, tmp_path, [f"SVT={world / 'data/SVT'}"])
    (result,) = run_benchmark(config, places, kind).results
    assert result.samples() == 5 and ("gtc_acc" in result.every) == (kind != "long")


def test_nothing_found_is_an_error(world, tmp_path):
    with pytest.raises(DataError, match=r"none of the 18 sets is there.*--root"):
        run_benchmark(config_in(world), find_sets(ENGLISH, tmp_path))


def test_a_broken_set_is_listed(world, tmp_path):
    (tmp_path / "SVT").mkdir()
    places = find_sets(ENGLISH, world / "data", [f"SVT={tmp_path / 'SVT'}"])
    benchmark = run_benchmark(config_in(world), places)
    assert [r.place.name for r in benchmark.results] == ["IIIT5k"]
    assert "SVT" in {p.name for p, _ in benchmark.missing}


def test_weighted_mean():
    assert weighted([1.0, 0.0], [3, 1]) == 0.75 and weighted([1.0], [0]) == 0.0


def test_latency_warms_up_and_waits():
    calls = []
    rows = latency.measure(lambda x: calls.append(x.shape), [(96, 32)], [1, 4], warm_up=3, runs=6)
    assert calls == [(1, 3, 32, 96)] * 9 + [(4, 3, 32, 96)] * 9
    assert all(r.best <= r.median <= r.p95 for r in rows) and rows[1].per_image == rows[1].median / 4
    text = latency.latency_table(rows, latency.machine())
    assert "10 calls to warm up" in text and "| 96 x 32 | 4 |" in text


@pytest.mark.parametrize("tool", ["en", "ch", "long"])
def test_tools(world, tool, tmp_path):
    name = {"en": "SVT", "ch": "scene_test", "long": "long_lmdb"}[tool]
    words = ["--model", world / "best.pth", "--root", tmp_path, "--output", tmp_path / "out"]
    words += ["--sets", f"{name}={world / 'data/test/IIIT5k'}", *(["--latency"] if tool == "en" else [])]
    done = case.run_tool(f"eval_rec_all_{tool}.py", *words)
    assert done.returncode == 0, done.stderr
    assert f"| {name} | 7 |" in done.stdout and "tables: " in done.stdout
    assert len(list((tmp_path / "out").iterdir())) == 3
    assert ("Latency on" in done.stdout) == (tool == "en")
    assert np.isfinite(float(done.stdout.split(f"| {name} | 7 | ")[1].split()[0]))


def test_tool_refuses_politely():
    done = case.run_tool("eval_rec_all_en.py")
    assert done.returncode == 1 and "expected -c CONFIG, or --model" in done.stderr and "Traceback" not in done.stderr
