"""The model card ``weights/<name>.md``, written from measured numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openrec.errors import DataError
from openrec.shipping.facts import described
from openrec.shipping.score import tables

LICENCE = """Weights: Apache-2.0, as the code. Rendered words: this project's renderer with the fonts and word lists of
the training machine, which are not part of the file. Debian's fonts are openly licensed (mostly OFL, Apache, GPL with
font exception), its English word list is SCOWL's (public-domain-like)."""
REAL = """Real words: ICDAR 2015 Incidental Scene Text, training split (Robust Reading Competition, challenge 4), CC BY
4.0, without its held-out rows and without any picture of the test sets."""


def card(facts: Mapping[str, Any]) -> str:
    """Markdown of ``weights/<name>.json``.

    Raises:
        DataError: no evaluation was measured, or photographs of training were not compared with the test sets.
    """
    for needed in ("model", "evaluation", "speed"):
        if needed not in facts:
            raise DataError(f"card: the facts lack {needed}; run tools/eval_weights.py on the packed file first.")
    model, evaluation = facts["model"], facts["evaluation"]
    stages = facts.get("training", {}).get("stages", [])
    if any(s["real"] for s in stages) and evaluation.get("overlap") is None:
        raise DataError("card: photographs were trained on and not compared with the test sets; give --training.")
    lines = [
        f"# {facts['name']}", "",
        f"{model['parameters'] / 1e6:.2f} M parameters, {model['bytes'] / 1e6:.2f} MB (float16), {model['characters']} "
        f"characters; images {model['size']}. `openrec.load(\"{facts['name']}\")`", "",
        "## What it reads", "", f"Every sample scored. {evaluation['rule'].capitalize()}. openrec "
        f"{evaluation['openrec']}, {evaluation['date']}.", "", *tables(evaluation),
        _overlap(facts), "", *_fonts(stages), "## Speed", "", *_speed(facts["speed"]), "",
        "## Training", "", *_training(facts, stages),
        "## Data and licences", "", LICENCE, "", *([REAL, ""] if any(s["real"] for s in stages) else []),
        "## What it cannot read", "", *_limits(facts),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def overview(models: Sequence[Mapping[str, Any]]) -> str:
    """Markdown of ``weights/README.md``: all models beside each other, to choose by."""
    sets = list(dict.fromkeys(one["name"] for m in models for one in m["evaluation"]["sets"]))
    head = ["model", "parameters", "MB", "characters", *sets, "images/s, batch 1", "images/s, batch 32"]
    lines = [
        "# Models that read at once", "",
        '`openrec.load("NAME")`, or `--model NAME` of the tools. Each has a card with its data, licences, training and '
        "limits.", "",
        f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}",
    ]  # fmt: skip
    for facts in models:
        model, speed = facts["model"], facts["speed"]
        found = {one["name"]: one["rows"][0] for one in facts["evaluation"]["sets"]}
        read = [
            f"{100 * found[n]['accuracy']:.1f} % ({found[n]['correct']}/{found[n]['words']})" if n in found else "-"
            for n in sets
        ]
        rates = [f"{row['images_per_second']:g}" for row in speed["batches"].values()]
        cells = [
            f"[{facts['name']}]({facts['name']}.md)", f"{model['parameters'] / 1e6:.2f} M",
            f"{model['bytes'] / 1e6:.2f}", str(model["characters"]), *read, *rates,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    machines = "; ".join(dict.fromkeys(_where(m["speed"]) for m in models))
    return "\n".join([*lines, "", f"Every sample scored; {models[0]['evaluation']['rule']}. Speed: {machines}.", ""])


def _where(speed: Mapping[str, Any]) -> str:
    width, height = speed["size"]
    return f"{speed['machine']}, {speed['threads']} threads, load {speed['load']} when measured; {width} x {height} px"


def _overlap(facts: Mapping[str, Any]) -> str:
    found = facts["evaluation"].get("overlap")
    if found is None:
        return "No photograph was used in training."
    return (
        f"None of the {found['tests']} photographs of these sets is among the {found['training']} of training "
        "(compared by bytes and by a hash that survives scaling and compression)."
    )


def _fonts(stages: list[Mapping[str, Any]]) -> list[str]:
    seen = [s for s in stages if s["data"].get("font_split") != "train"]
    return ["Training drew with all font families, so the fonts of the rendered set were seen.", ""] if seen else []


def _speed(speed: Mapping[str, Any]) -> list[str]:
    rows = [f"| {n} | {r['ms']} | {r['fastest_ms']} | {r['images_per_second']} |" for n, r in speed["batches"].items()]
    return [
        "| batch | ms per batch | fastest | images per second |",
        "|---:|---:|---:|---:|",
        *rows,
        "",
        f"{_where(speed)}.",
    ]


def _training(facts: Mapping[str, Any], stages: list[Mapping[str, Any]]) -> list[str]:
    training = facts.get("training", {})
    lines = []
    for number, one in enumerate(stages, 1):
        lines += [f"Stage {number}: {described(dict(one))}", ""]
        if one["sources"]:
            lines += [f"Rendered with {'; '.join(one['sources'])}.", ""]
        if one["command"]:
            lines += [f"    {one['command']}", ""]
        lines += [f"Commit {one['commit']}.", ""] if one["commit"] else []
        if one["curve"]:
            points = ", ".join(f"{p['step']}: {100 * p['acc']:.1f}" for p in _thinned(one["curve"]))
            lines += [f"Accuracy on its own evaluation words (%) by step: {points}", ""]
    lines += [f"Machine: {training.get('machine') or 'not noted'}.", ""]
    if training.get("state"):
        lines += [f"`{training['state']}` is the training state behind stage {training['state_of']}; to train on:", ""]
        lines += [f"    {training['resume']}", ""] if training.get("resume") else []
    if training.get("outlook"):
        lines += ["## What more training would give", "", training["outlook"], ""]
    return lines


def _thinned(curve: list[Mapping[str, Any]], most: int = 20) -> list[Mapping[str, Any]]:
    """At most ``most`` points, the last one among them."""
    step = max(1, -(-len(curve) // most))
    return curve[::-1][::step][::-1]


def _limits(facts: Mapping[str, Any]) -> list[str]:
    model = facts["model"]
    lines = [
        f"* Characters outside its {model['characters']}: {model['kinds']}."
        + ("" if model["space"] else " No spaces."),
        f"* Texts of more than about {model['longest']} characters: a picture gives that many columns at most, and is "
        "squeezed to their width.",
        "* Never trained on: vertical lines, several lines in one picture, words turned by more than 30 degrees.",
    ]
    weak = [
        f"{one['name']} / {row['script']} ({row['correct']} of {row['words']})"
        for one in facts["evaluation"]["sets"] for row in one["rows"]
        if row["words"] >= 5 and row["accuracy"] < 0.5
    ]  # fmt: skip
    return lines + ([f"* Measured below one half: {'; '.join(weak)}."] if weak else [])
