"""How good is a network, or every arm of a run, on any split of any data, class by class?"""

import sys

from recipes.__main__ import start

SETTINGS, JOB = "recipes.evaluating.settings:EvaluateSettings", "recipes.evaluating.job:EvaluateJob"

if __name__ == "__main__":
    sys.exit(start("evaluate"))
