"""The plan of the house, as CONTRIBUTING.md draws it: what there is, who may import whom; and what an import costs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torchvision", "captum", "scipy", "matplotlib", "torchmetrics", "lightning", "PIL")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
LINE = re.compile(r"(?P<indent> *)(?P<name>\w+(?:/|\.py))(?P<about>.*?)(?:<- (?P<arrows>[\w ]+))?$")


def drawing() -> dict[str, set[str]]:
    """Path -> what it may import, in the order of the drawing."""
    plan, above = {}, []
    for line in CONTRIBUTING.split("```")[1].strip().splitlines():
        match = LINE.fullmatch(line)
        assert match, f"not a line of the plan: {line!r}"
        above = [*above[: len(match["indent"]) // 2], match["name"].rstrip("/")]
        plan["/".join(above)] = set((match["arrows"] or "").split())
    return plan


PLAN = drawing()
ROOMS = {path: arrows for path, arrows in PLAN.items() if path.count("/") == 1}
FILES = sorted(file for top in ("perpixel", "recipes", "benchmarks") for file in (ROOT / top).rglob("*.py"))
each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))


def name(path: str) -> str:
    return path.split("/")[-1].removesuffix(".py")


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = file.relative_to(ROOT).with_suffix("").parts[: -node.level] if node.level else ()
            base = ".".join((*package, *([node.module] if node.module else [])))
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def test_the_plan_shows_every_room_and_no_other() -> None:
    def is_room(path: Path) -> bool:
        return (path.suffix == ".py" and path.name != "__init__.py") or any(path.glob("*.py"))

    tops = [path for top in ("perpixel", "recipes") for path in (ROOT / top).iterdir() if is_room(path)]
    inner = [path for room in (ROOT / "perpixel").iterdir() if room.is_dir() for path in room.iterdir()]
    there = tops + [path for path in inner if path.is_dir() and is_room(path)]
    shown = {path for path in PLAN if "/" in path}
    assert shown == {str(path.relative_to(ROOT)) for path in there}


def test_no_arrow_of_the_plan_points_upward() -> None:
    above: set[str] = set()
    for path, arrows in PLAN.items():
        assert arrows <= above, f"{path} stands above {arrows - above}"
        above.add(name(path))


@each_file
def test_files_import_only_what_their_room_may(file: Path) -> None:
    top, *rest = file.relative_to(ROOT).parts
    names = imported(file)
    if top == "perpixel" and rest != ["__init__.py"]:
        own = name(rest[0])
        used = {part.split(".")[1] for part in names if part.startswith("perpixel.")}
        assert used - {own} <= PLAN.get(f"perpixel/{rest[0]}", set()), f"{file} imports what the plan does not allow it"
    elif top == "recipes" and rest != ["__init__.py"]:
        own = name(rest[0])
        used = {part.split(".")[1] for part in names if part.startswith("recipes.")}
        allowed = ROOMS.get(f"recipes/{rest[0]}", set()) | {own}
        assert used <= allowed, f"{file} imports what the plan does not allow it"
    above = {"perpixel": set(), "recipes": {"perpixel"}, "benchmarks": PLAN["benchmarks"]}[top]
    house = {"perpixel", "recipes", "benchmarks", "tests"} - {top}
    assert {part.split(".")[0] for part in names} & house <= above, f"{file} imports upward"


@each_file
def test_recipes_and_benchmarks_use_public_names(file: Path) -> None:
    if file.is_relative_to(ROOT / "perpixel"):
        return
    folders = {name(path) for path in ROOMS if path.startswith("perpixel/") and not path.endswith(".py")}
    public = {"perpixel", *(f"perpixel.{part}" for part in (*folders, "checks", "outputs"))}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "perpixel":
            assert node.module in public, f"{node.module} is not public"
            assert not any(alias.name.startswith("_") for alias in node.names)


def test_the_plan_keeps_subjects_and_jobs_apart() -> None:
    apart = {"losses", "fixations", "attribution"}
    assert all(not PLAN[f"perpixel/{part}"] & (apart | {"attach", "weighting"}) for part in apart)
    assert not any("attach" in arrows for arrows in PLAN.values())
    assert PLAN["recipes/kit"] == {"perpixel"}  # no training, no job
    assert PLAN["recipes/training"] == {"perpixel", "kit"}
    jobs = {path for path in ROOMS if path.startswith("recipes/") and not path.endswith(".py")}
    jobs -= {"recipes/kit", "recipes/training"}
    assert len(jobs) == 6
    assert all(PLAN[job] <= {"perpixel", "kit", "training"} for job in jobs)


def test_files_and_folders_stay_small() -> None:
    counts: dict[Path, int] = {}
    for file in FILES:
        counts[file.parent] = counts.get(file.parent, 0) + 1
    assert {str(folder): count for folder, count in counts.items() if count > 14} == {}
    lengths = {str(file): len(file.read_text().splitlines()) for file in FILES}
    assert {file: length for file, length in lengths.items() if length > 320} == {}


def test_what_contributing_names_is_there() -> None:
    named = re.findall(r"`([\w./]+/[\w.]*)`", CONTRIBUTING)
    bases = [ROOT, ROOT / "recipes", ROOT / "perpixel", ROOT / "perpixel/fixations"]
    missing = [path for path in named if not any((base / path).exists() for base in bases)]
    assert len(named) > 15
    assert [path for path in missing if "NAME" not in path and "SUBJECT" not in path] == []


def test_checks_import_only_torch_and_the_standard_library() -> None:
    outside = {part.split(".")[0] for part in imported(ROOT / "perpixel/checks.py")} - set(sys.stdlib_module_names)
    assert outside == {"torch"}


COST_OF_IMPORT = f"""
import os, sys, time, torch
for _ in range(3):
    if os.fork() == 0:
        start = time.process_time()
        import perpixel
        print(time.process_time() - start, [name for name in {HEAVY} if name in sys.modules])
        sys.exit()
    os.wait()
"""


def test_import_is_light() -> None:
    """CPU seconds beyond torch's own, the least of three."""
    run = subprocess.run([sys.executable, "-c", COST_OF_IMPORT], capture_output=True, text=True, check=True)
    costs, heavy = zip(*(line.split(maxsplit=1) for line in run.stdout.splitlines()))
    assert heavy == ("[]",) * 3, "a heavy library is imported eagerly"
    assert min(map(float, costs)) <= 0.3
