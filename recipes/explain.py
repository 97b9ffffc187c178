"""Which context decides which labels, beside what a network with random weights shows?"""

import sys

from recipes.__main__ import start

SETTINGS, JOB = "recipes.explaining.settings:ExplainSettings", "recipes.explaining.job:ExplainJob"

if __name__ == "__main__":
    sys.exit(start("explain"))
