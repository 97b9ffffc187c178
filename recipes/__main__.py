"""`perpixel NAME ...` (`python -m recipes NAME ...`): the recipes by name; `python -m recipes.NAME ...` is the same."""

import ast
import difflib
import pkgutil
import sys
from importlib import import_module
from pathlib import Path

HELP = ("-h", "--help", "--help-all")


def known_recipes() -> dict[str, str]:
    """The recipes by name, with the first line of their files; nothing is imported for that."""
    files = {path.stem: path for path in sorted(Path(__file__).parent.glob("[!_]*.py"))}
    return {name: (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "") for name, file in files.items()}


def start(recipe: str, arguments: list[str] | None = None, called: str | None = None) -> int:
    """Run a recipe `called` so, or print its help; the exit status. A package that it lacks is told in a line."""
    given, called = list(sys.argv[1:] if arguments is None else arguments), called or f"python -m recipes.{recipe}"
    try:
        entry = import_module(f"recipes.{recipe}")
        if asked := [option for option in given if option in HELP]:
            parts = "recipes.kit.command_line:build_parser", "recipes.kit.help:help_text", entry.SETTINGS
            build_parser, help_text, kind = map(pkgutil.resolve_name, parts)
            print(help_text(build_parser(kind, called), None if "--help-all" in asked else kind))
            return 0
        run_recipe, job = map(pkgutil.resolve_name, ("recipes.kit.job:run_recipe", entry.JOB))
    except KeyboardInterrupt:
        print("interrupted")
        return 130
    except ModuleNotFoundError as error:
        if (error.name or "recipes").split(".")[0] in ("recipes", "perpixel"):
            raise
        print(f'error: {called} needs {error.name}, which is not installed. Run: pip install "perpixel[recipes]"')
        return 1
    return run_recipe(job, given, called)


def main(arguments: list[str] | None = None, called: str = "perpixel") -> int:
    """Run the recipe that the first argument names, or list them; the exit status."""
    name, *given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    recipes = known_recipes()
    if name in recipes:
        return start(name, given, f"{called} {name}")
    if name in HELP:
        width = max(map(len, recipes))
        lines = [f"  {called} {one:{width}}  {about}" for one, about in recipes.items()]
        print("\n".join(["What do the labels of a segmentation network rest on? Recipes that measure it:", "", *lines]))
        print(f"\n{called} NAME --help shows the settings that matter, --help-all every one.")
        return 0
    close = difflib.get_close_matches(name, recipes, 1)
    remedy = f"Did you mean {called} {close[0]}?" if close else f"{called} alone lists them."
    print(f"error: expected a recipe, one of {', '.join(recipes)}, got {name}. {remedy}")
    return 1


if __name__ == "__main__":
    sys.exit(main(called="python -m recipes"))
