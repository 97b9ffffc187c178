"""From every labelled pixel back to the image points it rests on, drawn and counted."""

import sys

from recipes.__main__ import start

SETTINGS, JOB = "recipes.tracing.settings:FixationSettings", "recipes.tracing.job:FixationJob"

if __name__ == "__main__":
    sys.exit(start("fixations"))
