"""python -m recipes.fixations: from every labelled pixel back to the image points it rests on, drawn and counted."""

import sys

from recipes.kit.job import run_recipe
from recipes.tracing.job import FixationJob

if __name__ == "__main__":
    sys.exit(run_recipe(FixationJob))
