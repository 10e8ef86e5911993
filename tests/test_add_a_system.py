"""The steps of CONTRIBUTING.md's "Adding a system", followed to the letter in a copy of the project."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FENCE = "`" * 3


def step(title):
    """File and text of the first code block behind a bold title."""
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    guide = guide[guide.index("## Adding a system") : guide.index("## Tests")]
    pattern = rf"\*\*\d\. The {title}\*\*[^`]*?`[^\n]*?\n\n{FENCE}\w+\n(.*?){FENCE}"
    found = re.search(pattern, guide, re.DOTALL)
    assert found, f"CONTRIBUTING.md has no step called {title}"
    file = re.search(r"`([\w/]+\.(?:py|yml|md))`", found.group(0)).group(1)
    return file, found.group(1)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The package, the tools, the bases and what the steps name, with the steps done; done already, they are undone."""
    root = tmp_path_factory.mktemp("project")
    skip = shutil.ignore_patterns("__pycache__")
    for folder in ("openrec", "tools", "configs/base", "docs", "tests"):
        shutil.copytree(ROOT / folder, root / folder, ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", root)
    for title in ("module", "YAML"):
        file, text = step(title)
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text, encoding="utf-8")
    file, line = step("line")
    registry = root / file
    lines = [old for old in registry.read_text(encoding="utf-8").splitlines(keepends=True) if old != line]
    lines.insert(lines.index('    "encoder": {\n') + 1, line)
    registry.write_text("".join(lines), encoding="utf-8")
    run(root, *reference())
    return root


def reference():
    """The command of the last step, without ``python``."""
    program, *words = step("reference")[1].split()
    assert program == "python"
    return words


def run(root, *command):
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=root, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_the_steps_are_one_file_one_line_one_yaml_and_one_command():
    module, code = step("module")
    registry, line = step("line")
    config, text = step("YAML")
    assert module.startswith("openrec/modeling/encoders/") and registry == "openrec/registry.py"
    assert config.startswith("configs/rec/") and line.count("\n") == 1
    compile(code, module, "exec")
    assert f"{Path(module).stem}:" in line and 10 <= len(text.splitlines()) <= 30
    page, command = step("reference")
    assert (ROOT / page).is_file() and len(command.splitlines()) == 1


def test_the_new_system_trains_saves_and_evaluates(copy):
    config = step("YAML")[0]
    small = [
        "Global.max_steps=2", "Global.print_batch_step=1", "Train.loader.num_workers=0", "Train.dataset.size=64",
        "Train.loader.batch_size_per_card=16", "Eval.dataset.size=20", "Global.output_dir=output/toy",
    ]  # fmt: skip
    run(copy, "tools/train_rec.py", "-c", config, "-o", *small)
    log = [json.loads(line) for line in (copy / "output/toy/log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in log if row["event"] == "train"]
    assert len(losses) == 2 and all(0 < loss < 1e4 for loss in losses)
    weights = "Global.pretrained_model=output/toy/latest.pth"
    assert "num_samples:20" in run(copy, "tools/eval_rec.py", "-c", config, "-o", *small, weights)


def test_wrong_keys_of_the_new_module_are_refused_with_the_nearest_one(copy):
    code = (
        "from openrec import registry\n"
        "print(registry.check('encoder', {'name': 'PatchLinear', 'dimm': 3}, 'Encoder'))\n"
        "print(registry.check('encoder', {'name': 'PatchLinears'}, 'Encoder'))\n"
    )
    told = run(copy, "-c", code)
    assert 'Did you mean "dim"' in told and 'Did you mean "PatchLinear"' in told


def test_the_reference_names_the_new_keys(copy):
    page = (copy / step("reference")[0]).read_text(encoding="utf-8")
    own = page.split("### PatchLinear\n")[1].split("\n### ")[0]
    assert re.search(r"^\| `dim` \|.*channels of the result", own, re.M)
    assert "up to date" in run(copy, *reference(), "--check")


@pytest.mark.slow
def test_the_suite_covers_the_new_system(copy):
    """What the chapter promises of tests that nobody has to write."""
    name = Path(step("YAML")[0]).stem
    cases = {
        "test_registry.py": "PatchLinear", "test_configs_build.py": name, "test_tiny_systems.py": name,
        "test_docs.py": "test_configuration",
    }  # fmt: skip
    for file, chosen in cases.items():
        told = run(copy, "-m", "pytest", f"tests/{file}", "-k", chosen, "-p", "no:cacheprovider", "-rA")
        assert "passed" in told and "skipped" not in told
        if file == "test_tiny_systems.py":
            assert f"test_learns_sixteen_words_by_heart[{name}]" in told
