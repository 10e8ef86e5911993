"""A line of code knows its room: modules import only from rooms before their own."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Rooms in the order of the flow. A module may import from earlier rooms and from its own.
ROOMS = [
    ("version", "errors"),
    ("registry", "charset", "dictionary"),
    ("config_schema", "config_yaml", "config_charset", "config_kinds", "config_image", "config_boxes", "config_fit"),
    ("config_check", "config", "cli"),
    ("preprocess",),
    ("data",),
    ("figure", "curves"),
    ("ops",),
    ("modeling.layers", "modeling.record"),
    ("modeling.transforms",),
    ("modeling.encoders",),
    ("modeling.decoders",),
    ("modeling",),
    ("losses", "postprocess"),
    ("metrics",),
    ("checkpoint", "optimizer", "export_format"),
    ("reading",),
    ("recognizer",),
    ("explain", "demo_web"),
    ("diagnose",),
    ("export",),
    ("engine",),
    ("compare",),
    ("shipping",),
]


def room_of(module: str) -> int:
    """Position of the most specific room that holds ``module`` (a name without the ``openrec.`` prefix)."""
    best = (-1, -1)
    for position, rooms in enumerate(ROOMS):
        for room in rooms:
            if module == room or module.startswith(room + "."):
                best = max(best, (room.count(".") + 1, position))
    return best[1]


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("openrec.") for name in found if name.startswith("openrec.")}


FILES = sorted(p for p in (ROOT / "openrec").rglob("*.py") if p != ROOT / "openrec" / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_come_from_earlier_rooms(path):
    module = ".".join(path.relative_to(ROOT / "openrec").with_suffix("").parts).removesuffix(".__init__")
    here = room_of(module)
    assert here >= 0, f"openrec.{module} stands in no room: add it to ROOMS"
    late = sorted(name for name in imported(path) if room_of(name) > here)
    assert not late, f"openrec.{module} imports from a later room: {late}"


@pytest.mark.parametrize("path", sorted((ROOT / "tools").glob("*.py")), ids=lambda p: p.name)
def test_tools_are_short(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= 75, f"{path.name} has {lines} lines: move the work into openrec/"
