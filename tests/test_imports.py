"""Who may import whom (STYLE), and what `import perpixel` costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "perpixel"
# part -> the parts of perpixel it may import, besides itself
ALLOWED = {
    "checks": set(),
    "reduction": {"checks"},
    "outputs": {"checks"},
    "borrow": set(),
    "losses": {"checks", "reduction", "outputs"},
    "fixations": {"checks", "reduction", "outputs", "borrow"},
    "attribution": {"checks", "reduction", "outputs", "borrow"},
    "weighting": {"checks", "reduction", "outputs", "borrow", "losses", "fixations", "attribution", "report"},
    "data": {"checks"},
    "models": {"checks"},
    "evaluation": {"checks", "reduction", "outputs", "borrow"},
    "report": {"checks"},
    "attach": {"checks", "reduction", "outputs", "borrow"},
}
HEAVY = ("torchvision", "captum", "scipy", "matplotlib", "torchmetrics", "lightning", "PIL")


def part(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


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


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_parts_import_only_what_they_may(file: Path) -> None:
    own = part(file)
    if own == "__init__":
        return
    used = {name.split(".")[1] for name in imported(file) if name.startswith("perpixel.")}
    assert own in ALLOWED, f"say in ALLOWED what perpixel/{own} may import"
    assert used - {own} <= ALLOWED[own]
    assert "recipes" not in {name.split(".")[0] for name in imported(file)}


def test_checks_import_only_torch_and_the_standard_library() -> None:
    outside = {name.split(".")[0] for name in imported(PACKAGE / "checks.py")} - set(sys.stdlib_module_names)
    assert outside == {"torch"}


@pytest.mark.parametrize("folder", ["recipes", "benchmarks"])
def test_recipes_and_benchmarks_use_public_names(folder: str) -> None:
    open_parts = ("attach", "attribution", "checks", "data", "evaluation", "fixations", "losses", "models", "outputs")
    public = {"perpixel", *(f"perpixel.{part}" for part in (*open_parts, "report", "weighting"))}
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "perpixel":
                assert node.module in public, f"{file}: {node.module} is not public"
                assert not any(alias.name.startswith("_") for alias in node.names), file


def test_import_is_light() -> None:
    code = (
        "import time, torch; start = time.perf_counter(); import perpixel; cost = time.perf_counter() - start\n"
        f"import sys; print(cost, [m for m in {HEAVY} if m in sys.modules])"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    cost = min(float(run.stdout.split()[0]) for run in runs)
    assert runs[0].stdout.split(maxsplit=1)[1].strip() == "[]", "a heavy library is imported eagerly"
    assert cost <= 0.3
