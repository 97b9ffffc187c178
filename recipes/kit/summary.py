"""What a run folder says first: summary.md, the same as index.html, and its head on the console."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from rich.markdown import Markdown

from perpixel.report import summary_page
from recipes.kit.progress import Progress
from recipes.kit.run_folder import write_atomically
from recipes.kit.settings import RunSettings
from recipes.kit.tables import markdown_text


@dataclass(frozen=True)
class Section:
    """A part of a summary, lines in Markdown; left out where it has neither lines nor pictures.

    pictures: file names in the run folder and what they show.
    """

    title: str
    lines: Sequence[str]
    note: str = ""
    pictures: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> list[str]:
        """The section in Markdown."""
        drawn = [line for name, what in self.pictures.items() for line in picture(name, what)]
        if not self.lines and not drawn:
            return []
        return ["", f"## {self.title}", "", *([self.note, ""] if self.note else []), *self.lines, "", *drawn]


@dataclass(frozen=True)
class Summary:
    """title, about, verdict: in Markdown; files: further names in the run folder and what they hold.

    pages: HTML files to begin with, and what each shows: they come before everything else.
    """

    title: str
    about: str
    verdict: str
    sections: Sequence[Section]
    files: Mapping[str, str]
    pages: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """The whole in Markdown."""
        links = " · ".join(f"[{name}]({name})" for name in self.pages)
        lines = [f"**Begin here, with a click on any pixel:** {links}", ""] if links else []
        lines += [f"# {self.title}", "", f"> {self.verdict}", "", self.about]
        every = {**self.pages, **{n: w for s in self.sections for n, w in s.pictures.items()}, **self.files}
        listed = Section("Files", [f"- [{name}]({name}): {markdown_text(what)}" for name, what in every.items()])
        for section in (*self.sections, listed):
            lines += section.text()
        return "\n".join(lines) + "\n"

    def save(self, folder: Path, progress: Progress) -> None:
        """summary.md and index.html; told: the pages first, the verdict, all findings (of the
        tables those that fit), and where they are."""
        text = self.text()
        write_atomically(folder / "summary.md", text.encode(errors="backslashreplace"))
        write_atomically(folder / "index.html", summary_page(text).encode(errors="backslashreplace"))
        for name in self.pages:
            progress.report(f"explorer, to open in a browser: {folder / name}")
        progress.report(f"\n{self.title}\n{self.verdict}")
        for section in self.sections:
            for table, some in groupby(section.lines, lambda line: line.startswith("|")):
                lines = list(some)
                joined = "\n".join(lines).strip("\n")
                if table and progress.shown and max(map(len, lines)) <= progress.console.width:
                    progress.console.print(Markdown(f"**{section.title}**\n\n{joined}"))
                elif joined and not table:
                    progress.report(joined)
        progress.report(f"\nAll of it, with pictures: {folder / 'index.html'} (the same as summary.md)")


def subject(settings: RunSettings) -> str:
    """Network and data, for titles: a folder of one's own by its name."""
    name, root = settings.data.name, settings.data.root
    return f"{settings.model.name} on {Path(root).resolve().name if name == 'folder' and root else name}"


def picture(name: str, what: str) -> list[str]:
    """The lines that show a picture, which leads to itself in full size, and say what it shows."""
    words = markdown_text(what)
    return [f"[![{words.replace('[', '(').replace(']', ')')}]({name})]({name})", "", f"*{words}*", ""]
