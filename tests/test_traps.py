"""tests/traps.md is complete and names tests that exist."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
ROWS = re.findall(r"^\| (T\d+) \| (.+?) \| (.+) \|$", (TESTS / "traps.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_defect_has_its_row():
    assert [name for name, _, _ in ROWS] == [f"T{i}" for i in range(1, 65)]
    assert all(len(shown) > 10 for _, _, shown in ROWS)


def test_every_named_test_exists():
    known = {
        f"{path.name}::{node.name}"
        for path in TESTS.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    named = {name for _, _, shown in ROWS for name in re.findall(r"`(test_\w+\.py::\w+)`", shown)}
    assert len(named) > 60
    assert not sorted(named - known)
