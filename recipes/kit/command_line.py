"""A recipe as a command: its arguments, --resume, and an exit status with mistakes reported in a sentence."""

import argparse
import contextlib
import difflib
import itertools
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml  # type: ignore[import-untyped]
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from perpixel.checks import complain
from recipes.kit.checks import is_plain
from recipes.kit.run_folder import CONFIG, DamagedCheckpoint, write_atomically

MISTAKES = (ValueError, TypeError, DamagedCheckpoint, FloatingPointError, OSError)
OWN_SETTING = {"finetune": "train", "explain": "ask", "fixations": "trace"}  # one that no other recipe has
Settings = TypeVar("Settings")


class SettingsParser(ArgumentParser):
    """One value stands for a list of one, one number for a square of that side.

    Its help leaves out the options that would read a group of settings from a file: they are refused.
    """

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """The settings given as arguments."""
        kinds = {f"--{action.dest}": getattr(action, "_typehint", None) for action in self._actions}
        given = list(sys.argv[1:] if args is None else args)
        for index, argument in enumerate(given):
            option, equals, value = argument.partition("=")
            if equals:
                given[index] = f"{option}={_several(value, kinds.get(option))}"
            elif index and given[index - 1] in kinds:
                given[index] = _several(argument, kinds[given[index - 1]])
        return super().parse_args(given, *rest, **options)

    def format_help(self) -> str:
        for action in self._actions:
            if action.dest in self.groups:
                action.help = argparse.SUPPRESS
        return super().format_help()


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
            remedy = f"Give single settings ({parser.prog} --help lists them), or a file of all settings as --config."
            raise ValueError(complain(option, f"{option}.SETTING", f"{option} {value}", remedy))
        if option == "--config" and value:
            read_document(known, Path(value), "config")
    with _one_line(known):
        return parser.parse_args(arguments), None


def known_settings(parser: ArgumentParser) -> Namespace:
    """All settings by name with their defaults; a group of settings is a Namespace."""
    return parser.get_defaults()


def parse_run(parser: ArgumentParser, folder: Path, option: str, parts: tuple[str, ...] = ()) -> Namespace:
    """The settings in a run folder (of those `parts`, the rest by default); nothing is downloaded on their behalf."""
    if not (folder / CONFIG).is_file():
        came = f"{folder}, without {CONFIG}"
        expected = "a run folder of recipes.finetune" if parts else "a run folder"
        raise FileNotFoundError(complain(option, expected, came, "Check the path."))
    known = known_settings(parser)
    if not parts:
        _check_recipe(parser, folder)
    document = read_document(known, folder / CONFIG, option, parts)
    with _one_line(known):
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
    if len(found) == 1 and not parser.prog.endswith(f".{found[0]}"):
        remedy = f"Run: python -m recipes.{found[0]} --resume {folder}"
        own, came = parser.prog.removeprefix("python -m "), f"{folder}, one of recipes.{found[0]}"
        raise ValueError(complain("resume", f"a run folder of {own}", came, remedy))


def read_document(known: Namespace, path: Path, option: str, parts: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings of a YAML file, by name; ValueError where it holds anything but `known` ones and plain values.

    The file may be anyone's: what is not a setting, or could name a class or another file of settings, ends here.
    """
    if not path.is_file():
        raise FileNotFoundError(complain(option, "a YAML file", f"{path}, not there", "Check the path."))
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(complain(option, "a YAML file", f"{path} ({_folded(str(error))})", "Mend it.")) from error
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
        names = [one for one in vars(known) if prefix or one not in ("config", "resume")]
        if name not in names:
            close = difflib.get_close_matches(str(name), names, 1)
            remedy = f"Did you mean {prefix}{close[0]}?" if close else "Remove it: --help lists the settings."
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
def _one_line(known: Namespace) -> Iterator[None]:
    """Mistakes that the parser finds, as a ValueError of one line that names the option as it is typed."""
    try:
        yield
    except argparse.ArgumentError as error:
        unknown = re.match(r"unrecognized arguments: --([\w.-]+)", str(error))
        if unknown:
            close = difflib.get_close_matches(unknown[1], list(known.keys()), 1)
            remedy = f"Did you mean --{close[0]}?" if close else "See --help."
            raise ValueError(complain(f"--{unknown[1]}", "a setting", "none of that name", remedy)) from error
        text = re.sub(
            r"(?:argument |Parser key )\"?([\w.-]+)\"?:", lambda m: f"--{m[1].removeprefix('--')}:", str(error)
        )
        text = re.sub(r"<class '(\w+)'>", r"\1", text).replace("typing.", "")
        raise ValueError(f"{_folded(text)}. See --help.") from error


def _folded(text: str) -> str:
    return " ".join(text.split())


class Command:
    """One call of a recipe; `folder` is set once the run folder is this process' own, and says where to continue."""

    def __init__(self, console: Console, command: str) -> None:
        self.console, self.command = console, command
        self.folder: Path | None = None

    def status(self, body: Callable[["Command"], None]) -> int:
        """Do it; the exit status is 0, 1 after a mistake of the user or a full disk, 130 when interrupted."""
        status = 1
        try:
            body(self)
            return 0
        except KeyboardInterrupt:
            message, status = "interrupted" if self.folder is None else "interrupted; nothing is lost", 130
        except MISTAKES as mistake:
            message = f"error: {_describe(mistake)}"
            if self.folder is not None:
                log = self.folder / "error.log"
                with contextlib.suppress(OSError):  # a full disk, or one that cannot be written
                    write_atomically(log, traceback.format_exc().encode(errors="backslashreplace"))
                    message += f"\nDetails: {log}"
        if self.folder is not None:
            message += f"\nContinue with: {self.command} --resume {self.folder}"
        style = "red" if status == 1 else None
        self.console.print(message, style=style, markup=False, highlight=False, soft_wrap=True)
        return status


def _describe(mistake: BaseException) -> str:
    """One line; of an error of the system with its file, of one in a loading process the last line of its traceback."""
    text = str(mistake)
    if isinstance(mistake, OSError) and mistake.strerror:
        files = [str(name) for name in (mistake.filename, mistake.filename2) if name is not None]
        text = f"{' -> '.join(files)}: {mistake.strerror}" if files else mistake.strerror
    elif "Traceback (most recent call last)" in text:
        text = text.strip().splitlines()[-1]
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in _folded(text))  # no codes that a terminal obeys
