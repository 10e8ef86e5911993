"""A page of results: pictures beside their texts, in one HTML file that needs nothing else and opens offline."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from openrec.errors import ConfigError, SampleError
from openrec.preprocess.decode import decode_rgb
from openrec.reading.inputs import Source, open_source

THUMBNAIL = (420, 72)  # (width, height) px; larger pictures are shown smaller
LIMIT = 3000  # pictures on a page; browsers become slow behind that

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8884; --quiet: #777; }}
body {{ font: 15px/1.5 system-ui, "Noto Sans", sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem; }}
h1 {{ font-size: 1.4rem; margin: 0; }}
.quiet {{ color: var(--quiet); font-size: .85rem; overflow-wrap: anywhere; }}
.tools {{ position: sticky; top: 0; background: Canvas; padding: .7rem 0; display: flex; gap: .8rem; flex-wrap: wrap; }}
input, select {{ font: inherit; padding: .25rem .5rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th {{ text-align: left; font-weight: 600; }}
th, td {{ padding: .45rem .7rem; border-bottom: 1px solid var(--line); vertical-align: middle; }}
td.picture {{ width: 44%; max-width: {width}px; }}
td.picture img {{ max-width: 100%; min-height: 40px; object-fit: contain; object-position: left; display: block; }}
.text {{ font-size: 1.35rem; white-space: pre-wrap; overflow-wrap: anywhere; }}
.text span {{ border-bottom: .22em solid; border-radius: 1px; margin-right: 1px; }}
.score {{ font-variant-numeric: tabular-nums; text-align: right; white-space: nowrap; }}
tr.failed .text {{ font-size: 1rem; color: #c0392b; }}
tr.wrong td.score::after {{ content: " \\2717"; color: #c0392b; }}
.truth {{ font-size: 1rem; color: #c0392b; }}
.key span {{ border-bottom: .22em solid; padding: 0 .3em; margin-right: .4em; }}
</style></head><body>
<h1>{title}</h1>
<p class="quiet">{subtitle}<br><span id="told"></span></p>
<p class="key quiet">Under each character its probability:
{key} Hover to see the number. The score is their mean.</p>
<div class="tools"><input id="find" type="search" placeholder="find text or file" aria-label="find text or file">
<select id="order" aria-label="order"><option value="n">in order</option><option value="s">least certain first</option>
</select><span class="quiet" id="shown"></span></div>
<table><thead><tr><th>picture</th><th>read</th><th class="score">score</th></tr></thead><tbody id="rows">
"""
_TAIL = """</tbody></table>
<p class="quiet" id="summary">{summary}</p>
<script>
const body = document.getElementById("rows"), rows = [...body.rows];
const find = document.getElementById("find"), order = document.getElementById("order");
function show() {{
  const word = find.value.toLowerCase();
  let n = 0;
  for (const row of rows) {{
    const hit = row.dataset.find.toLowerCase().includes(word);
    row.hidden = !hit;
    n += hit;
  }}
  document.getElementById("shown").textContent = n + " of " + rows.length;
}}
order.onchange = () => {{
  const sorted = [...rows];
  if (order.value === "s") sorted.sort((a, b) => a.dataset.score - b.dataset.score);
  body.append(...sorted);
}};
find.oninput = show;
document.getElementById("told").textContent = document.getElementById("summary").textContent;
show();
</script></body></html>
"""


def color_of(score: float) -> str:
    """CSS color of a probability: red at 0.5 and below, over amber, to green at 1."""
    share = min(1.0, max(0.0, (score - 0.5) / 0.5))
    return f"hsl({round(140 * share)} 70% 45%)"


def marked(text: str, char_scores: list[float]) -> str:
    """HTML of a text, each character underlined in the color of its probability."""
    if len(char_scores) != len(text):  # characters of several code points, or no scores
        return html.escape(text)
    return "".join(_marked(c, s) for c, s in zip(text, char_scores))


def _marked(character: str, score: float) -> str:
    c = html.escape(character, quote=True)
    return f'<span style="border-color:{color_of(score)}" title="{c}: {score:.3f}">{c}</span>'


def thumbnail(source: Source, size: tuple[int, int] = THUMBNAIL) -> str:
    """A picture as a ``data:`` address, scaled down to fit ``size``; empty when it cannot be opened."""
    try:
        content, _ = open_source(source)
        image = decode_rgb(content) if isinstance(content, bytes) else content
    except (SampleError, OSError, ValueError):
        return ""
    return data_address(image, size)


def data_address(image: np.ndarray, size: tuple[int, int] = THUMBNAIL) -> str:
    """An RGB array as a ``data:`` address, scaled down to fit ``size``."""
    height, width = image.shape[:2]
    share = min(1.0, size[0] / width, size[1] / height)
    if share < 1:
        new = (max(1, round(width * share)), max(1, round(height * share)))
        image = cv2.resize(image, new, interpolation=cv2.INTER_AREA)
    ok, data = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 88])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode() if ok else ""


class ResultPage:
    """Writes the page row by row, so that its size in memory does not grow. Used in a ``with`` block.

    Args:
        path: HTML file.
        title, subtitle: plain text.
        truths: the true text by file name, where it is known.
    """

    def __init__(
        self, path: str | Path, title: str, subtitle: str = "", truths: Mapping[str, str] | None = None
    ) -> None:
        self.path, self.truths = Path(path), truths or {}
        self.rows = self.failed = self.known = self.right = self.left_out = 0
        key = "".join(f'<span style="border-color:{color_of(s)}">{s:g}</span>' for s in (0.5, 0.7, 0.9, 1.0))
        head = _HEAD.format(title=html.escape(title), subtitle=html.escape(subtitle), key=key, width=THUMBNAIL[0])
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w", encoding="utf-8", errors="replace")
        except OSError as error:
            raise ConfigError(f'cannot write "{self.path}" ({error.strerror}). Choose another place.') from error
        self._file.write(head)

    def add(self, text: Any, source: Source) -> None:
        """Add one ``Text`` and the picture it was read in."""
        self.rows += 1
        self.failed += text.error is not None
        truth = self.truths.get(text.name)
        wrong = truth is not None and text.text.lower() != truth.lower()
        if truth is not None:
            self.known += 1
            self.right += not wrong
        if self.rows > LIMIT:
            self.left_out += 1
            return
        self._file.write(_row(text, "" if text.error else thumbnail(source), truth if wrong else None))

    def close(self) -> None:
        """Write the end of the page; what happened stands in ``summary``."""
        self._file.write(_TAIL.format(summary=html.escape(self.summary)))
        self._file.close()

    @property
    def summary(self) -> str:
        parts = [f"{self.rows} pictures", f"{self.failed} could not be read"]
        if self.known:
            parts.append(f"{self.right} of {self.known} known texts are right (case ignored)")
        if self.left_out:
            parts.append(f"the last {self.left_out} are not shown here; the result file has them")
        return ", ".join(parts) + "."

    def __enter__(self) -> ResultPage:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _row(text: Any, picture: str, truth: str | None) -> str:
    kind = "failed" if text.error else ("wrong" if truth is not None else "")
    shown = html.escape(text.error) if text.error else marked(text.text, text.char_scores)
    image = f'<img src="{picture}" alt="">' if picture else ""
    size = f"{text.size[0]} x {text.size[1]} px" if text.size else ""
    true = f'<div class="truth" dir="auto">true: {html.escape(truth)}</div>' if truth is not None else ""
    find = html.escape(f"{text.name} {text.text} {text.error or ''}", quote=True)
    score = "" if text.error else f"{text.score:.3f}"
    empty = "" if text.text or text.error else '<span class="quiet">(nothing)</span>'
    return (
        f'<tr class="{kind}" data-find="{find}" data-score="{text.score:.5f}"><td class="picture">{image}</td>'
        f'<td><div class="text" dir="auto">{shown}{empty}</div>{true}'
        f'<div class="quiet">{html.escape(text.name)} {size}</div></td><td class="score">{score}</td></tr>\n'
    )
