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
    pattern = rf"\*\*\d\. The {title}\*\*[^`]*?(?:of )?`[^\n]*?\n\n{FENCE}\w+\n(.*?){FENCE}"
    found = re.search(pattern, guide, re.DOTALL)
    assert found, f"CONTRIBUTING.md has no step called {title}"
    file = re.search(r"`([\w/]+\.(?:py|yml))`", found.group(0)).group(1)
    return file, found.group(1)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The package, the tools and the bases, with the three steps done."""
    root = tmp_path_factory.mktemp("project")
    skip = shutil.ignore_patterns("__pycache__")
    for folder in ("openrec", "tools", "configs/base"):
        shutil.copytree(ROOT / folder, root / folder, ignore=skip)
    for title in ("module", "YAML"):
        file, text = step(title)
        assert not (ROOT / file).exists() and not (root / file).exists()
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text, encoding="utf-8")
    file, line = step("line")
    registry = root / file
    lines = registry.read_text(encoding="utf-8").splitlines(keepends=True)
    lines.insert(lines.index('    "encoder": {\n') + 1, line)
    registry.write_text("".join(lines), encoding="utf-8")
    return root


def run(root, *command):
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=root, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_the_steps_are_one_file_one_line_and_one_yaml():
    module, code = step("module")
    registry, line = step("line")
    config, text = step("YAML")
    assert module.startswith("openrec/modeling/encoders/") and registry == "openrec/registry.py"
    assert config.startswith("configs/rec/") and line.count("\n") == 1
    compile(code, module, "exec")
    assert f"{Path(module).stem}:" in line and 10 <= len(text.splitlines()) <= 30


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
        "print(registry.check('encoder', {'name': 'PatchMean', 'dimm': 3}, 'Encoder'))\n"
        "print(registry.check('encoder', {'name': 'PatchMeans'}, 'Encoder'))\n"
    )
    told = run(copy, "-c", code)
    assert 'Did you mean "dim"' in told and 'Did you mean "PatchMean"' in told
