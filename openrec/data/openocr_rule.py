"""Which evaluation samples OpenOCR's benchmark data sets score (https://github.com/Topdu/OpenOCR, Apache-2.0).

This project scores every sample. The rule only marks those that OpenOCR leaves out, so that the
number under its rule can be given beside the main one.
"""

from __future__ import annotations

import unicodedata

from openrec.charset import Charset


def clean_label(text: str, charset: Charset, max_text_length: int | None, filter_label: bool = True) -> str | None:
    """The label as OpenOCR's ``*Test`` data sets clean it, or None when it is too long.

    Whitespace is removed; letters are folded to ASCII (NFKD, the rest dropped) - but not when the
    dictionary itself holds non-ASCII characters, where OpenOCR would discard every sample; then the
    length test; then the charset's case, if it has only one; then characters outside it are deleted.

    Args:
        max_text_length: longest label that is kept; None for no limit.
        filter_label: False leaves only the removal of whitespace and the length test.
    """
    label = "".join(text.split())
    characters = "".join(charset.characters)
    if filter_label and characters.isascii():
        label = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode()
    if max_text_length is not None and len(label) > max_text_length:
        return None
    if not filter_label:
        return label
    if characters == characters.lower():
        label = label.lower()
    elif characters == characters.upper():
        label = label.upper()
    return "".join(c for c in label if c in charset)


def exclusion(text: str, charset: Charset, max_text_length: int | None, filter_label: bool = True) -> str | None:
    """Why OpenOCR's rule leaves a sample with this label out, or None."""
    cleaned = clean_label(text, charset, max_text_length, filter_label)
    if cleaned is None:
        return f"cleaned label is longer than {max_text_length} characters"
    return None if cleaned else "cleaned label is empty"
