"""Documentation that cannot go stale: commands parse, links lead somewhere, the reference is complete."""

import argparse
import ast
import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import reading_case as case
import torch
import yaml

from openrec import config_schema as schema
from openrec import registry
from openrec.compare.table import _COLUMNS
from openrec.config import check_config, load_config, resolve_charset
from openrec.diagnose.watch import RULES
from openrec.modeling import build_model
from openrec.postprocess import build_post_process

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [p for p in PAGES if p.name != "CHANGELOG.md"]


def blocks(page, language):
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def commands(page):
    """The commands of all ``bash`` blocks as lists of words: continued lines joined, comments away, ``&&`` split."""
    found = []
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while "&&" in words:
                found.append(words[: words.index("&&")])
                words = words[words.index("&&") + 1 :]
            found.append(words)
    return [words for words in found if words]


COMMANDS = [pytest.param(words, id=f"{p.stem}-{' '.join(words)[:60]}") for p in PAGES for words in commands(p)]


EXPORTS = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


# ---- commands ------------------------------------------------------------------------------------------


class Parsed(Exception):
    """A tool's own parser took the words."""


def parse(monkeypatch, words):
    """What the parser of ``tools/x.py`` makes of its words; the tool goes no further."""
    plain = argparse.ArgumentParser.parse_args

    def stop(self, args=None, namespace=None):
        raise Parsed(plain(self, args, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", [str(ROOT / words[0]), *words[1:]])
    try:
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    except Parsed as end:
        return vars(end.args[0])
    return {}  # a tool without arguments; it has run


def check_python(monkeypatch, words):
    assert (ROOT / words[0]).is_file(), f"there is no {words[0]}"
    given = parse(monkeypatch, words)
    config = given.get("config") or ""
    if config.startswith("configs/rec/toy"):
        return  # the example of CONTRIBUTING.md, which test_add_a_system.py builds
    if config.startswith("configs/"):
        left_out = ("Global.pretrained_model=", "Global.infer_img=")  # files that the reader has
        gone = [o for o in given["opt"] if o.startswith(left_out) and not Path(o.split("=", 1)[1]).exists()]
        kept = [o for o in given["opt"] if o not in gone] + [o.split("=", 1)[0] + "=null" for o in gone]
        content = load_config(ROOT / config, kept)
        if str(content["Global"]["character_dict_path"]).startswith("own/"):  # the reader's, made on the page
            content["Global"]["character_dict_path"] = "./tools/utils/EN_symbol_dict.txt"
        if any(o.startswith("Global.pretrained_model=") for o in gone) and content["Loss"]["name"] == "DINOLoss":
            content["Loss"]["allow_scratch"] = True  # the detector it starts from is the reader's
        check_config(content)


def check_torchrun(monkeypatch, words):
    from torch.distributed.run import get_args_parser

    given = get_args_parser().parse_args(words)
    check_python(monkeypatch, [given.training_script, *given.training_script_args])


@pytest.mark.parametrize("words", COMMANDS)
def test_commands(words, monkeypatch):
    """Scripts exist, the words suit their parsers, configs with these changes pass the check."""
    monkeypatch.chdir(ROOT)
    program, *rest = words
    if program == "python":
        if words[1] == "tools/doctor.py":
            assert (ROOT / words[1]).is_file()
            return
        check_python(monkeypatch, rest)
    elif program == "torchrun":
        check_torchrun(monkeypatch, rest)
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert not set(rest) - set(targets)
    elif program == "pip":
        text = (ROOT / "pyproject.toml").read_text()
        extras = re.findall(r"\.\[([a-z,]+)\]", " ".join(rest))
        assert all(re.search(rf"^{e} = \[", text, re.M) for group in extras for e in group.split(","))
    elif program in ("bash", "source"):
        assert (ROOT / rest[0]).is_file() or rest[0].startswith(".venv/")
    elif program == "git":
        assert rest[0] in ("clone", "add", "commit")
    else:
        assert program in ("cd", "mkdir", "ls", "cp", "unzip"), f"no test knows how to check: {' '.join(words)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_blocks_are_python(page):
    for block in blocks(page, "python"):
        if not block.startswith(" "):  # indented: a line to be put into a file
            ast.parse(block)


# ---- links, names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://", "#", "mailto:")):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name} links to {target}, which is not there"


def test_all_needs_are_answered_by_things_that_exist():
    text = (ROOT / "docs" / "users_needs.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+) \| (.+) \| (.+) \|$", text, re.M)
    assert [int(row[0]) for row in rows] == list(range(1, 26))
    for number, _, _, shown in rows:
        named = re.findall(r"`([^`]+)`", shown)
        assert named, f"need {number} names nothing that shows it"
        for name in named:
            file, _, test = name.partition("::")
            words = file.split()
            if words[0] == "make":
                continue
            path = words[1] if words[0] == "python" else words[0]
            place = ROOT / "tests" / path if path.startswith("test_") else ROOT / path
            assert place.is_file(), f"need {number}: there is no {path}"
            assert not test or re.search(rf"^def {test}\(", place.read_text(encoding="utf-8"), re.M), f"no {name}"


# ---- systems, comparison, diagnosis ----------------------------------------------------------------------

SYSTEMS, NUMBERS = ROOT / "docs" / "systems.md", ROOT / "docs" / "compare_and_diagnose.md"


@pytest.mark.parametrize("text", blocks(SYSTEMS, "yaml"), ids=lambda text: yaml.safe_load(text)["Global"]["output_dir"])
def test_examples_of_systems_build(text, tmp_path):
    """As files beside the shipped ones: the check passes, the model reads a picture."""
    file = tmp_path / "mine.yml"
    file.write_text(text.replace("../../base/", f"{ROOT}/configs/base/"), encoding="utf-8")
    config = load_config(file, [f"Global.character_dict_path={ROOT}/tools/utils/EN_symbol_dict.txt"])
    check_config(config)
    post_process = build_post_process(config["PostProcess"], config["Global"], resolve_charset(config))
    config["Architecture"]["Decoder"]["out_channels"] = post_process.get_character_num()
    image = torch.zeros(1, 3, *config["Architecture"]["Encoder"].get("max_sz", (32, 128)))
    with torch.no_grad():
        assert len(post_process(build_model(config["Architecture"]).eval()(image))) == 1


def test_the_systems_page_names_what_is_there():
    text = re.sub(r"```.*?```", "", SYSTEMS.read_text(encoding="utf-8"), flags=re.S)
    named = {n for n in re.findall(r"`([\w/]+\.yml)`", text) if not n.startswith("configs/rec/mine/")}
    shipped = {str(p.relative_to(ROOT / "configs" / "rec")) for p in (ROOT / "configs" / "rec").rglob("*.yml")}
    stems = {Path(file).name for file in shipped} | {p.name for p in (ROOT / "configs" / "base").glob("*.yml")}
    assert len(named) > 40 and all(n in shipped if "/" in n else n in stems for n in named), named - shipped
    table = text[text.index("## What belongs together") : text.index("## What it costs")]
    known = {name for section in registry.TABLE.values() for name in section}
    parts = set(re.findall(r"`([A-Z]\w+(?:Decoder|Encode|Loss|Decode|Metric))`", table))
    assert parts <= known and set(registry.TABLE["decoder"]) <= parts


def test_every_number_of_a_comparison_and_a_diagnosis_is_explained():
    text = NUMBERS.read_text(encoding="utf-8")
    rows = " ".join(re.findall(r"^\| (.+?) \|", text, re.M))
    assert all(f"`{kind}`" in rows for kind in RULES), "a warning that docs/compare_and_diagnose.md does not explain"
    for heading in (h for h, _ in _COLUMNS if h != "system"):
        assert heading in rows or all(part in rows for part in heading.split(": ")), heading


# ---- the reference of all keys ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("gen_config", ROOT / "docs" / "gen_config.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_configuration_is_complete(generator):
    """Every name of the registry, every key of its constructor and of the fixed tables, each with a meaning."""
    text = generator.page()
    parts = {p.split("\n")[0]: p for p in re.split(r"^##+ ", text, flags=re.M)}
    for section, table in registry.TABLE.items():
        for name in filter(lambda n, s=section: generator.is_there(s, n), table):
            for key in registry.parameters(registry.resolve(section, name)):
                assert f"| `{key}` |" in parts[name], f"{name}.{key} is not on the page"
    for title, keys in generator.FIXED:
        assert all(f"| `{key}` |" in parts[title] for key in keys)
    assert set(generator.SECTIONS) == set(registry.TABLE)
    assert schema.GLOBAL and not re.findall(r"^\| `(\w+)` .*\|  \|$", text, re.M), "keys without a meaning"


def test_configuration_is_up_to_date(generator):
    same = generator.PAGE.read_text(encoding="utf-8") == generator.page()
    assert same, "a constructor has changed: python docs/gen_config.py"


# ---- the site --------------------------------------------------------------------------------------------


def test_every_page_is_in_the_menu():
    menu = set(re.findall(r": ([\w.]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M))
    assert menu == {p.name for p in (ROOT / "docs").glob("*.md")}


def test_the_api_page_names_what_is_there():
    for name in re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.M):
        module, _, attribute = name.rpartition(".")
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        assert found or hasattr(importlib.import_module(module), attribute), f"there is no {name}"


@pytest.mark.slow
def test_the_site_is_built(tmp_path):
    """``strict``: a link, a name or a snippet that leads nowhere is an error."""
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("mkdocs and mkdocstrings are not installed (pip install 'openrec[docs]')")
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "-d", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert not re.search(r'<(script|link)[^>]+(src|href)="https?://(?!OWNER)', page), "the site must work offline"


# ---- the first five minutes, walked -----------------------------------------------------------------------


@pytest.mark.slow
def test_five_minutes_and_export_are_walked(tmp_path):
    """Every command of both pages in their order, with fewer words and steps; servers and installs are left out."""
    case.write_pictures(tmp_path / "my_crops", 6)
    shorter = {"20000": "120", "1000": "40"}
    walked = 0
    for page in ("five_minutes.md", "export_and_serve.md"):
        for words in commands(ROOT / "docs" / page):
            if words[0] != "python" or words[1] in ("tools/demo_web.py", "tools/eval_rec_all_en.py"):
                continue
            if ("export_rec.py" in words[1] or "first.onnx" in words) and not EXPORTS:
                continue
            words = [shorter.get(w, w) for w in words]
            words = [str(ROOT / w) if w.startswith(("tools/", "configs/", "tests/")) else w for w in words]
            if words[1].endswith("train_rec.py"):
                words += ["Global.max_steps=2", "Train.loader.num_workers=0", "Eval.loader.num_workers=0"]
            done = subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
            walked += 1
    assert walked >= 7
    assert (tmp_path / "results.html").is_file() and len(list((tmp_path / "explained").iterdir())) == 6
    assert (tmp_path / "output" / "first" / "curves.png").is_file()
