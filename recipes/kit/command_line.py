"""The command line of a recipe: its help, its arguments, --config and --resume; mistakes named as one types them."""

import argparse
import contextlib
import difflib
import itertools
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml  # type: ignore[import-untyped]
from jsonargparse import ArgumentParser, Namespace

from perpixel.checks import complain
from recipes.kit.checks import is_plain
from recipes.kit.help import CONFIGS, GENERAL, help_text, kind_in_words
from recipes.kit.run_folder import CONFIG
from recipes.kit.settings import RunSettings

# one that no other recipe has
OWN_SETTING = {
    "finetune": "loss",
    "explain": "ask",
    "fixations": "trace",
    "evaluate": "arm",
    "skip_study": "study",
    "weak_supervision": "pseudo",
}
Settings = TypeVar("Settings")


class SettingsParser(ArgumentParser):
    """One value stands for a list of one, one number for a square of that side. Its help is `help_text`."""

    def __init__(self, *rest: Any, **options: Any) -> None:
        self.kinds: dict[str, Any] = {}  # the type of every setting, by its option
        super().__init__(*rest, **options)

    def add_class_arguments(self, theclass: Any, nested_key: str | None = None, *rest: Any, **options: Any) -> Any:
        hints = theclass if is_dataclass(theclass) else theclass.__init__
        self.kinds |= dict(_kinds(hints, f"--{nested_key}." if nested_key else "--"))
        return super().add_class_arguments(theclass, nested_key, *rest, **options)

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """The settings given as arguments."""
        given = list(sys.argv[1:] if args is None else args)
        for index, argument in enumerate(given):
            option, equals, value = argument.partition("=")
            if equals:
                given[index] = f"{option}={_several(value, self.kinds.get(option))}"
            elif index and given[index - 1] in self.kinds:
                given[index] = _several(argument, self.kinds[given[index - 1]])
        return super().parse_args(given, *rest, **options)

    def format_help(self) -> str:
        return help_text(self)


def build_parser(kind: type[RunSettings], command: str) -> SettingsParser:
    """The command line of a recipe: --config, --resume and every field of its settings."""
    description = (kind.__doc__ or "").split("Args:")[0].strip()
    parser = SettingsParser(prog=command, allow_abbrev=False, exit_on_error=False, description=description)
    parser.add_argument("--config", action="config")
    parser.add_argument("--resume", type=str | None, default=None)
    kind.add_to(parser)
    return parser


def _kinds(kind: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, hint in get_type_hints(kind).items():
        yield from _kinds(hint, f"{prefix}{name}.") if is_dataclass(hint) else [(prefix + name, hint)]


def _several(value: str, kind: Any) -> str:
    """A list of the value where `kind` is a list, twice a number where it is two integers; else the value."""
    kinds = [kind, *get_args(kind)]
    if tuple[int, int] in kinds:
        return f"[{value}, {value}]" if value.isdecimal() else value
    if not any(get_origin(one) is list for one in kinds):
        return value
    try:
        single = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    return json.dumps([single]) if isinstance(single, int | str) else value


def read_arguments(parser: ArgumentParser, arguments: list[str]) -> tuple[Namespace, Path | None]:
    """The parsed settings, and the folder to resume: its settings are then those of the run."""
    arguments = _located(arguments)
    given = [
        part for argument in arguments for part in (argument.split("=", 1) if argument[:2] == "--" else [argument])
    ]
    if "--resume" in given[:-1]:
        folder = Path(given[given.index("--resume") + 1])
        if len(given) != 2:
            remedy = f"Run: {parser.prog} --resume {folder}"
            raise ValueError(complain("resume", "no other setting beside it", " ".join(arguments), remedy))
        return parse_run(parser, folder, "resume"), folder
    known = known_settings(parser)
    for option, value in itertools.zip_longest(given, given[1:]):
        if option.startswith("--") and isinstance(known.get(option[2:]), Namespace):
            remedy = f"Give single settings ({parser.prog} --help-all lists them), or a file of settings as --config."
            raise ValueError(complain(option, f"{option}.SETTING", f"{option} {value}", remedy))
        if option == "--config" and value:
            read_document(known, Path(value), "config")
    with _one_line(parser, known):
        return parser.parse_args(arguments), None


def _located(arguments: list[str]) -> list[str]:
    """The arguments, a file of settings that comes along, where no such file is here, by its whole path."""
    found = list(arguments)
    for index, argument in enumerate(arguments):
        option, _, value = argument.rpartition("=" if argument.startswith("--config=") else "\0")
        if option or (index and arguments[index - 1] == "--config"):
            places = [place / value for place in (CONFIGS, CONFIGS.parents[1])]
            there = [str(place) for place in places if place.is_file() and not Path(value).exists()]
            found[index] = f"{option}={there[0]}" if there and option else (there or [argument])[0]
    return found


def known_settings(parser: ArgumentParser) -> Namespace:
    """All settings by name with their defaults; a group of settings is a Namespace."""
    return parser.get_defaults()


def parse_run(parser: ArgumentParser, folder: Path, option: str, parts: tuple[str, ...] = ()) -> Namespace:
    """The settings in a run folder (of those `parts`, the rest by default); nothing is downloaded on their behalf."""
    if not (folder / CONFIG).is_file():
        found = f"without {CONFIG}" if folder.is_dir() else "no folder" if folder.exists() else "not there"
        raise FileNotFoundError(complain(option, "a run folder", f"{folder}, {found}", "Check the path."))
    known = known_settings(parser)
    if not parts:
        _check_recipe(parser, folder)
    document = read_document(known, folder / CONFIG, option, parts)
    with _one_line(parser, known):
        parsed = parser.parse_object(document)
    parsed.data.options.pop("download", None)
    return parsed


def _check_recipe(parser: ArgumentParser, folder: Path) -> None:
    """ValueError where the settings in a run folder are those of another recipe."""
    document = None
    with contextlib.suppress(yaml.YAMLError, UnicodeDecodeError, RecursionError):  # told by `read_document`
        document = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    keys = document if isinstance(document, Mapping) else {}
    found = [recipe for recipe, setting in OWN_SETTING.items() if setting in keys]
    own = re.split("[. ]", parser.prog)[-1]
    if len(found) == 1 and found[0] != own:
        remedy = f"Run: {parser.prog.removesuffix(own)}{found[0]} --resume {folder}"
        came = f"{folder}, one of recipes.{found[0]}"
        raise ValueError(complain("resume", f"a run folder of recipes.{own}", came, remedy))


def read_document(known: Namespace, path: Path, option: str, parts: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings of a YAML file, by name; ValueError where it holds anything but `known` ones and plain values.

    The file may be anyone's: what is not a setting, or could name a class or another file of settings, ends here.
    """
    if not path.is_file():
        came = f"{path}, {'no file' if path.exists() else 'not there'}"
        raise FileNotFoundError(complain(option, "a YAML file", came, "Check the path."))
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        place, text = getattr(error, "problem_mark", None), str(getattr(error, "problem", error))
        came = f"{path} ({f'line {place.line + 1}: ' if place else ''}{folded(text)})"
        remedy = "Indent with spaces, not with a tab." if "'\\t'" in text else "Mend it."
        raise ValueError(complain(option, "a YAML file", came, remedy)) from error
    document = _only(document, parts) if parts else document
    _check_settings(document, known, f"{path}", "")
    return document


def _only(document: Any, parts: tuple[str, ...]) -> Any:
    """Those parts of a mapping."""
    return {part: document.get(part, {}) for part in parts} if isinstance(document, Mapping) else document


def _check_settings(found: Any, known: Namespace, source: str, prefix: str) -> None:
    if not isinstance(found, Mapping):
        expected = f"{prefix}SETTING: VALUE" if prefix else "SETTING: VALUE in every line"
        raise ValueError(complain(source, expected, found, f"Mend {prefix.rstrip('.') or 'the file'}."))
    for name, value in found.items():
        setting = f"{prefix}{name}"
        if name == "resume" and value is None and not prefix:
            continue
        names = [one for one in vars(known) if prefix or one not in GENERAL]
        if name not in names:
            close = difflib.get_close_matches(str(name), names, 1)
            remedy = f"Did you mean {prefix}{close[0]}?" if close else "Remove it: --help-all lists the settings."
            raise ValueError(complain(setting, "a setting", f"none of that name, in {source}", remedy))
        if isinstance(known[name], Namespace):
            _check_settings(value, known[name], source, f"{setting}.")
        elif not all(map(is_plain, value.values() if isinstance(value, dict) else [value])):
            expected, remedy = "plain values: numbers, texts, lists", "Nothing that a file names is imported or called."
            raise ValueError(complain(setting, expected, f"{value} in {source}", remedy))


def build_settings(kind: type[Settings], values: Namespace, prefix: str = "") -> Settings:
    """The dataclass of these values, checked; mistakes are named as one types the setting."""
    hints = get_type_hints(kind)
    given = {
        one.name: build_settings(hints[one.name], values[one.name], f"{prefix}{one.name}.")
        if is_dataclass(hints[one.name])
        else values[one.name]
        for one in fields(kind)  # type: ignore[arg-type]
        if one.name in values  # a recipe may leave out what it has no use for
    }
    try:
        return kind(**given)
    except (ValueError, TypeError) as error:
        text = str(error)
        raise type(error)(text if text.startswith(prefix) else prefix + text) from error


@contextlib.contextmanager
def named(prefix: str, **names: str) -> Iterator[None]:
    """Mistakes in arguments, named as one types the setting: by `names`, or else the prefix and the same name."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        found = re.match(r"(\w+): expected ", text := str(error))
        if found is None or found[1] == prefix.rstrip("."):
            raise
        text = names.get(found[1], prefix + found[1]) + text[found.end(1) :]
        raise type(error)(re.sub(r"Pass (\w+)=\.", rf"Pass --{prefix}\1.", text)) from error


@contextlib.contextmanager
def _one_line(parser: ArgumentParser, known: Namespace) -> Iterator[None]:
    """Mistakes that the parser finds, as a ValueError of one line that names the option as it is typed."""
    try:
        yield
    except argparse.ArgumentError as error:
        text, remedy = folded(str(error)), "See --help-all."
        if unknown := re.match(r"unrecognized arguments: (-*)([^ =]+)(.*)", text):
            close = difflib.get_close_matches(unknown[2], list(known.keys()), 1)
            if close:
                remedy = f"Did you mean --{close[0]}?"
            elif "]" in text or "}" in text:
                remedy = "Write [1,2] without spaces, or in quotes: '[1, 2]'."
            elif not unknown[1]:
                remedy = "Several values are a list: [a,b], without spaces. See --help-all."
            came = "none of that name" if unknown[1] else "a word of its own"
            raise ValueError(complain(f"{unknown[1]}{unknown[2]}", "a setting", came, remedy)) from error
        found = re.match(r"(?:argument |Parser key )\"?-{0,2}([\w.]+)\S*: (.*)", text)
        if found is None:
            raise ValueError(f"{text}. {remedy}") from error
        option, value = f"--{found[1]}", re.search(r"(?:Got|Given) value: (.*)", found[2])
        if option in parser.kinds and (value or "expected one argument" in found[2]):
            came = value[1] if value else "nothing after it"
            raise ValueError(complain(option, kind_in_words(parser.kinds[option]), came, remedy)) from error
        raise ValueError(f"{option}: {found[2]}. {remedy}") from error


def folded(text: str) -> str:
    """In one line."""
    return " ".join(text.split())
