"""Every name a config may use can be imported, names what it accepts, and answers for wrong keys."""

import inspect
import logging
import typing

import pytest
import torch

from openrec import registry
from openrec.config_kinds import fits, named
from openrec.errors import ConfigError

NAMES = [(section, name) for section, table in registry.TABLE.items() for name in table]


@pytest.fixture
def fresh_warnings(monkeypatch):
    monkeypatch.setattr(registry, "_warned", set())


@pytest.mark.parametrize(("section", "name"), NAMES)
def test_every_name_resolves_to_a_class_that_names_its_keys(section, name):
    target = registry.resolve(section, name)
    assert inspect.isclass(target) and target.__doc__, "a registered class says what it is"
    if target.__init__ not in (object.__init__, torch.nn.Module.__init__):
        kinds = {p.kind for p in inspect.signature(target).parameters.values()}
        assert inspect.Parameter.VAR_KEYWORD not in kinds, "no **kwargs: every key is named"
    assert registry.section_of(target) == section
    known = registry.parameters(target)
    assert not set(getattr(target, "ignored_keys", ())) & set(known)
    assert set(getattr(target, "key_aliases", {}).values()) <= set(known)
    for parameter, inner in getattr(target, "nested", {}).items():
        assert parameter in known and (inner in registry.TABLE or inspect.isclass(inner))


@pytest.mark.parametrize(("section", "name"), NAMES)
def test_defaults_fit_their_annotations(section, name):
    target = registry.resolve(section, name)
    hints = typing.get_type_hints(target.__init__)
    for parameter, details in registry.parameters(target).items():
        if details.default is not details.empty and parameter in hints:
            default = list(details.default) if isinstance(details.default, tuple) else details.default
            assert fits(default, hints[parameter]), f"{parameter} = {default!r} is no {hints[parameter]}"


@pytest.mark.parametrize(("section", "name"), NAMES)
def test_every_class_refuses_a_key_it_does_not_have(section, name):
    problems = named(section, {"name": name, "no_such_key": 1}, "Here")
    assert any(p.startswith("Here.no_such_key: ") and "no such key" in p for p in problems)


def test_unknown_names_get_the_nearest_match():
    message = r'Architecture\.Encoder: no encoder is called "SVTRv2Mamb". Did you mean "SVTRv2Mamba"'
    with pytest.raises(ConfigError, match=message):
        registry.resolve("encoder", "SVTRv2Mamb", "Architecture.Encoder")
    with pytest.raises(ConfigError, match="Known: CdistNetLR"):
        registry.resolve("scheduler", "Zzz")
    with pytest.raises(ConfigError, match="no op is called"):
        registry.resolve("op", ["KeepKeys"])
    assert "Known: ASTERDecoder, CTCDecoder" in registry.check("decoder", {}, "D")[0]
    assert registry.check("decoder", 3, "D")[0].startswith("D: expected a mapping")


class Inner:
    """For the tests below."""

    def __init__(self, width: int, in_channels: int):
        self.width, self.in_channels = width, in_channels


class Outer:
    """For the tests below."""

    ignored_keys = ("old",)
    key_aliases = {"colour": "color"}
    nested = {"part": Inner}

    def __init__(self, size: int, in_channels: int, color: str = "red", part: dict | None = None):
        self.arguments = (size, in_channels, color, part)


def test_call_fills_context_and_takes_aliases(fresh_warnings, caplog):
    with caplog.at_level(logging.WARNING, "openrec"):
        for _ in range(2):
            built = registry.call(
                Outer, {"size": 3, "colour": "blue", "old": 1, "part": {"width": 2}}, "O", in_channels=8, unused=1
            )
    assert built.arguments == (3, 8, "blue", {"width": 2})
    assert [r.getMessage() for r in caplog.records] == ["O.old is accepted and has no effect in Outer."]


def test_call_lists_all_problems(fresh_warnings):
    with pytest.raises(ConfigError) as error:
        registry.call(Outer, {"colr": "blue", "part": {"widht": 2}}, "O")
    text = str(error.value)
    assert 'O.colr: Outer has no such key. Did you mean "color"?' in text
    assert "O.size: missing" in text and "O.in_channels: missing" in text
    assert 'O.part.widht: Inner has no such key. Did you mean "width"?' in text and "O.part.width: missing" in text


def test_kinds_are_checked_in_nested_parts(fresh_warnings):
    problems = named(Outer, {"size": "3", "part": {"width": 2.5}}, "O")
    assert problems == [
        "O.size: expected a whole number, got '3' (a text; write the number without quotes).",
        "O.part.width: expected a whole number, got 2.5.",
    ]
