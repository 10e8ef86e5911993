"""Packaging. All metadata is in pyproject.toml.

The operators of ``openrec.ops`` are plain PyTorch in this version, so there is nothing to compile
and an install needs neither a compiler nor torch. ``csrc/README.md`` says what will be built here.
"""

from setuptools import setup

setup()
