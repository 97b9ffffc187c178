"""--help and --help-all: the settings that matter, or all, each with its text and default, as wide as the terminal."""

import json
import re
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import ArgumentParser

from recipes.kit.settings import RunSettings

CONFIGS = Path(__file__).parents[1] / "configs"  # files of settings that come along
_COME_ALONG = ", ".join(sorted(path.name for path in CONFIGS.glob("*.yaml")))
GENERAL = {  # what is no setting of the run
    "config": f"File of settings (YAML), or one of those that come along: {_COME_ALONG}. Later arguments win.",
    "print_config": "Print all settings as they were given, for such a file, and end.",
    "resume": "Run folder to continue, as it was begun: no other setting beside it.",
}
KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    dict: "a mapping such as '{name: value}', with a space after the colon",
    type(None): "null",
}


def help_text(parser: ArgumentParser, kind: type[RunSettings] | None = None) -> str:
    """What --help shows of a recipe with settings of this kind; without, all settings, as --help-all does."""
    settings = [name for name, _ in parser.get_defaults().items() if name not in GENERAL]
    parts = [f"{parser.prog} [--config FILE] [--SETTING VALUE ...]", _filled(parser.description or "")]
    if kind is not None:
        examples = [f"  # {what}\n{_command(parser.prog, given)}" for what, given in kind.examples.items()]
        parts += ["\n".join(["Examples:", *examples])]
        parts += [_section(parser, "The settings that matter most:", kind.matter)]
        parts += [_section(parser, "Besides:", [*GENERAL])]
        parts += [f"All {len(settings)} settings: {parser.prog} --help-all"]
        return "\n\n".join(parts)
    parts += [_section(parser, "General:", [*GENERAL])]
    top = next(iter(parser.groups))
    for group, described in parser.groups.items():
        own = [name for name in settings if (name.rpartition(".")[0] or top) == group]
        parts += [_section(parser, f"{described.title}:", own)]
    return "\n\n".join(parts)


def _section(parser: ArgumentParser, title: str, names: Sequence[str]) -> str:
    """A title, and under it settings with their texts and defaults."""
    texts = {action.dest: " ".join((action.help or "").split()) for action in parser._actions} | GENERAL
    column = max(len(name) for name in names) + 6
    lines = [_filled(title)]
    for name in names:
        default = "" if name in GENERAL else f" Default: {_typed(parser.get_default(name))}."
        text = _filled(texts[name] + default, column)
        lines.append(f"  --{name}".ljust(column) + text[column:])
    return "\n".join(lines)


def _width() -> int:
    """That of the terminal, at most 100 columns, less one."""
    return max(60, min(shutil.get_terminal_size((100, 24)).columns, 100)) - 1


def _filled(text: str, column: int = 0) -> str:
    """The text in lines that begin at `column`."""
    indent = " " * column
    return textwrap.fill(text, _width(), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _command(prog: str, given: str) -> str:
    """A command in lines that a shell joins, each option beside its value."""
    parts = [prog, *re.split(r" (?=--)", given)] if given else [prog]
    lines = [""]
    for part in parts:
        fits = len(f"{lines[-1]} {part} \\") <= _width()
        lines = [*lines[:-1], f"{lines[-1]} {part}"] if fits else [*lines, f"    {part}"]
    return " \\\n".join(f" {line}" for line in lines)


def _typed(value: Any) -> str:
    """A value as one types it."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_typed, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


def kind_in_words(kind: Any) -> str:
    """What a setting of this type takes."""
    of, parts = get_origin(kind), get_args(kind)
    if of in (Union, UnionType):
        return " or ".join(map(kind_in_words, parts))
    if of is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if of is tuple:
        return f"{len(parts)} numbers such as [{','.join(['1', '2', '3'][: len(parts)])}]"
    if of is list:
        return "a list such as [a,b], without spaces"
    return KINDS.get(of or kind, "another value")
