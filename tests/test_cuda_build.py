"""The compiled library asks torch for nothing that torch 2.10 lacks, and CPU builds of torch can load it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import openrec

LIBRARY = next(iter(Path(openrec.__file__).parent.glob("_C*.so")), None)
# libc and libstdc++, by version or (where torch's libraries export a copy of their own) by name.
SYSTEM = re.compile(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+$|^_Z(N?K?St|T[ISV]N?K?St)|^_ZNKSt|^_Z(nw|na|dl|da)")
WEAK = {"__cxa_finalize", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__"}


@pytest.mark.skipif(LIBRARY is None, reason="nothing is compiled here")
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm to list symbols with")
def test_undefined_symbols_are_on_the_list_of_torch_2_10():
    allowed = set((Path(__file__).parent / "stable_symbols_2_10.txt").read_text().split())
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", LIBRARY], capture_output=True, text=True, check=True
    ).stdout
    names = [line.split()[-1] for line in listing.splitlines()]
    torch_names = [n for n in names if not SYSTEM.search(n) and n.split("@")[0] not in WEAK]
    assert torch_names, "the library uses torch"
    strange = sorted(set(torch_names) - allowed)
    assert not strange, f"not in torch 2.10's stable C interface: {strange}"
