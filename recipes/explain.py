"""python -m recipes.explain: which context decides which labels, beside what a network with random weights shows?"""

import sys

from recipes.explaining.job import ExplainJob
from recipes.kit.job import run_recipe

if __name__ == "__main__":
    sys.exit(run_recipe(ExplainJob))
