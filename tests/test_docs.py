"""README and pages: their snippets run, their commands parse, their links lead somewhere, and the API page is whole."""

import ast
import importlib
import inspect
import pkgutil
import re
import shlex
import textwrap
from pathlib import Path

import pytest
import recipe_jobs

import perpixel
from recipes.kit.command_line import read_arguments

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = ("git", "pip", "python", "perpixel", "mkdocs", "ruff", ".ci/run")
INCLUDED = re.compile(r'^--8<-- "(?P<file>[\w./]+?)(?::(?P<section>\w+))?"$', re.MULTILINE)
JOBS = {job.recipe: job for job in recipe_jobs.JOBS}
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def text_of(page: Path) -> str:
    """A page with what it includes from other files."""

    def included(found: re.Match[str]) -> str:
        text = (ROOT / found["file"]).read_text()
        if found["section"] is None:
            return text
        start, end = (f"<!-- --8<-- [{edge}:{found['section']}] -->\n" for edge in ("start", "end"))
        return text.split(start)[1].split(end)[0]

    return INCLUDED.sub(included, page.read_text())


def fences(page: Path, kind: str) -> list[re.Match[str]]:
    return [found for found in FENCE.finditer(text_of(page)) if found["kind"] == kind]


@each_page
def test_snippets_run_from_the_first_to_the_last(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for found in FENCE.finditer(page.read_text()):  # what is included runs where it is from
        if found["kind"] == "python":
            exec(compile(found["body"], f"{page.name}: {found['body'].splitlines()[0]}", "exec"), names)


@each_page
def test_a_page_opens_with_an_example_that_is_run(page: Path) -> None:
    opening = text_of(page).split("\n## ")[0]
    found = next((found for found in FENCE.finditer(opening)), None)
    assert found is not None
    if found["kind"] != "python":  # then a command that .ci/run runs
        assert found["body"].strip() in (ROOT / ".ci/run").read_text()


def test_settings_named_in_the_text_exist() -> None:
    known = {"--help-all", "--dist", "--only", "--size"}  # the last ones of pytest and of benchmarks
    for job in JOBS.values():
        known |= {option for action in job.build_parser()._actions for option in action.option_strings}
    for page in PAGES:
        words = {word for code in re.findall(r"`([^`\n]+)`", text_of(page)) for word in code.split()}
        assert {word for word in words if re.match(r"--\w", word)} <= known, page.name


@each_page
def test_diffs_are_code_that_names_what_there_is(page: Path) -> None:
    for found in fences(page, "diff"):
        lines = [line[2:] for line in found["body"].splitlines() if not line.startswith("-")]
        code = ast.parse(textwrap.dedent("\n".join(lines)))
        assert any(line.startswith("+") for line in found["body"].splitlines())
        for node in ast.walk(code):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("perpixel."):
                known = inspect.signature(getattr(perpixel, ast.unparse(node.func).split(".")[1])).parameters
                assert {keyword.arg for keyword in node.keywords} <= set(known)


def commands() -> list[str]:
    """The command lines shown, without comments, those joined by && apart."""
    lines: set[str] = set()
    for page in PAGES:
        for found in fences(page, ""):
            body = found["body"].splitlines()
            if body[0] == "my_data/":
                continue
            lines |= {part.strip() for line in body for part in re.split(r"(?:^|  )#", line)[0].split("&&")}
        inline = re.findall(r"`((?:python|perpixel|pip) [^`]+)`", text_of(page))
        lines |= {part.strip() for line in inline for part in line.split("&&")}
    return sorted(line for line in lines if line and "NAME" not in line)


@pytest.mark.parametrize("command", commands())
def test_commands_parse(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PATH", "RUN_FOLDER", "my_data"):
        (tmp_path / name).mkdir()
    for name in ("FILE", "my.jpg"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    program, *words = shlex.split(re.sub(r"^python -m recipes\.", "perpixel ", command))
    if program == "perpixel":
        recipe, *given = words
        parser = JOBS[recipe].build_parser()
        if given[:1] == ["--resume"]:
            assert len(given) == 2
        elif given:  # else it is named, not called
            JOBS[recipe].read_settings(parser, read_arguments(parser, given)[0])
    elif words[:1] == ["-m"] and words[1].startswith("benchmarks."):
        source = (ROOT / words[1].replace(".", "/")).with_suffix(".py").read_text()
        assert all(f'"{word}"' in source for word in words[2:] if word.startswith("--"))
    elif program == "python" and words[0] != "-m":
        assert (ROOT / words[0]).is_file()
    elif program == "pip":
        extras = re.findall(r"\w+", re.search(r"\[(.*)\]", command)[1]) if "[" in command else []
        table = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1]
        assert all(re.search(rf"^{extra} = ", table, re.MULTILINE) for extra in extras)
    else:
        assert program in COMMANDS or program == "cd"


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"`[^`]*`", "", FENCE.sub("", page.read_text()))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in {slug(title) for title in re.findall(r"^#+ (.*)$", text_of(there), re.MULTILINE)}


def slug(title: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip())


def test_the_readme_is_short_and_pages_use_every_picture() -> None:
    assert len(PAGES[0].read_text().splitlines()) <= 160
    pages = "".join(page.read_text() for page in PAGES)
    pictures = [path.name for path in (ROOT / "docs").iterdir() if path.suffix in (".png", ".gif")]
    assert [name for name in pictures if name not in pages] == []


def test_the_api_page_has_every_public_name() -> None:
    paths = re.findall(r"^::: (\S+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    listed = [id(pkgutil.resolve_name(path)) for path in paths]
    assert len(set(listed)) == len(listed)
    files = [(ROOT / path.replace(".", "/")) for path in paths]
    assert not any(file.is_dir() or file.with_suffix(".py").is_file() for file in files)  # then the module was shown
    packages = [perpixel, *(importlib.import_module(f"perpixel.{name}") for name in perpixel._SUBPACKAGES)]
    public = [getattr(package, name) for package in packages for name in package.__all__]
    ours = [what for what in public if getattr(what, "__module__", "").startswith("perpixel")]
    assert [what for what in ours if id(what) not in listed] == []


DOCSTRING = """Pulls what it is given.

- one,
  of two
- the other

With V the pixels:

    L = Σ_p s_p

model: the network, with
    its flags. images: float (N, C); labels: ints, the
    truth.
**options: others.
TypeError or ValueError if not fit. See `attach`.

Args:
    weight: a factor, >= 0.

Raises:
    TypeError, ValueError: an argument.
"""
MARKDOWN = """Pulls what it is given.

- one, of two
- the other

With V the pixels:

    L = Σ_p s_p

- **model**: the network, with its flags.
- **images**: float (N, C);
- **labels**: ints, the truth.
- **\\*\\*options**: others.

TypeError or ValueError if not fit. See [`attach`][perpixel.attach.attach].

**Arguments**

- **weight**: a factor, >= 0.

**Raises**

- **TypeError, ValueError**: an argument.
"""


def test_docstrings_become_lists_and_links(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("griffe", reason="extra docs")
    monkeypatch.syspath_prepend(ROOT / "docs")
    to_markdown = importlib.import_module("docstrings").to_markdown
    known, links = {"model", "images", "labels", "options"}, {"attach": "perpixel.attach.attach"}
    found = to_markdown(DOCSTRING, known, links)
    assert re.sub(r"\n{3,}", "\n\n", found).strip() == MARKDOWN.strip()
