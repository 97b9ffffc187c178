"""The house's docstrings as Markdown for the API page: lines "name: text" become lists, `names` become links."""

import itertools
import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import griffe

_SECTIONS = {"Args:": "Arguments", "Returns:": "Returns", "Raises:": "Raises"}
_ITEM = re.compile(r"\*{0,2}\w+(?:, \*{0,2}\w+)*: +\S.*")
_ITEM_UNKNOWN = re.compile(r"(?:[a-z_]\w*|\w+Error)(?:, \w+)*: +\S.*")
_PAGE = Path(__file__).with_name("api.md")


def to_markdown(text: str, known: set[str], links: dict[str, str]) -> str:
    """A docstring as Markdown.

    known: names (parameters, members) whose lines "name: text" are items. links: public name -> its full path.
    """
    blocks = re.split(r"\n\s*\n", _with_titles(text))
    joined = "\n\n".join(_with_items(block, known) for block in blocks)
    paths = {name: path for name, path in links.items() if name not in known}
    return re.sub(
        r"`(\w+)`", lambda found: f"[{found[0]}][{paths[found[1]]}]" if found[1] in paths else found[0], joined
    )


def _with_titles(text: str) -> str:
    """Sections as a title and the text below it, dedented."""
    lines, done = text.split("\n"), list[str]()
    while lines:
        line = lines.pop(0)
        if line in _SECTIONS:
            end = next((i for i, one in enumerate(lines) if one and not one.startswith(" ")), len(lines))
            body = dedent("\n".join(lines[:end]))
            line = f"\n**{_SECTIONS[line]}**\n\n{body}\n"
            del lines[:end]
        done.append(line)
    return "\n".join(done)


def _with_items(block: str, known: set[str]) -> str:
    """A paragraph in which items are a list; a formula, which is indented, stays as it is."""
    lines = block.strip("\n").split("\n")
    if not lines[0] or lines[0].startswith("    "):
        return block
    only_items = all(_ITEM_UNKNOWN.fullmatch(line) for line in lines if not line.startswith(" "))
    parts: list[str] = []
    for line in lines:
        in_item = bool(parts) and parts[-1].startswith("- ")
        if _ITEM.fullmatch(line) and (only_items or set(re.findall(r"\w+", line.split(":")[0])) <= known):
            names, text = line.split(":", 1)
            bold = names.replace("*", "\\*")
            parts.append(f"- **{bold}**:{_split(text, known)}")
        elif line.startswith("- "):
            parts.append(line)
        elif in_item and not (line[0].isupper() and parts[-1].endswith(".")):
            parts[-1] += f" {_split(line.strip(), known)}"
        elif parts and not in_item:
            parts[-1] += f"\n{line.strip()}"
        else:
            parts.append(line)
    lists = [part.startswith("- ") for part in parts]
    gaps = ["\n" if a and b else "\n\n" for a, b in itertools.pairwise(lists)]
    return "".join(part + gap for part, gap in zip(parts, [*gaps, ""]))


def _split(text: str, known: set[str]) -> str:
    """Items that follow another on its line begin a line of their own."""

    def begin(found: re.Match[str]) -> str:
        is_item = set(re.findall(r"\w+", found[1])) <= known or found[1].endswith("Error")
        return f"\n- **{found[1]}**:" if is_item else found[0]

    return re.sub(r"(?<=[.;]) (\w+(?:, \w+)*):(?= )", begin, text)


class Docstrings(griffe.Extension):
    """Rewrites every docstring of a package once it is loaded, and says in signatures what the house's aliases mean."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        paths = re.findall(r"^::: (\S+)", _PAGE.read_text(encoding="utf-8"), re.MULTILINE)
        self._visit(pkg, {path.rsplit(".", 1)[1]: path for path in paths})

    def _visit(self, found: Any, links: dict[str, str]) -> None:
        parameters = getattr(found, "parameters", ())
        if found.docstring is not None:
            known = {parameter.name for parameter in parameters} | {*found.members, found.name}
            found.docstring.value = to_markdown(found.docstring.value, known, links)
        for annotated in (*parameters, *([found] if found.is_attribute else [])):
            annotated.annotation = _spelt_out(annotated.annotation, found)
        for member in found.members.values():
            if not member.is_alias:
                self._visit(member, links)


def _spelt_out(annotation: Any, user: Any) -> Any:
    """An annotation, each alias of the package in it (`Shift`) replaced by what it stands for (`Literal[...]`)."""
    if isinstance(annotation, griffe.ExprBinOp):
        left, right = (_spelt_out(side, user) for side in (annotation.left, annotation.right))
        return griffe.ExprBinOp(left, annotation.operator, right)
    if not isinstance(annotation, griffe.ExprName):
        return annotation
    try:
        found = user.modules_collection[annotation.canonical_path]
        found = found.final_target if found.is_alias else found
    except (KeyError, griffe.GriffeError):  # another package's
        return annotation
    return _spelt_out(found.value, found) if found.is_attribute and found.value is not None else annotation
