"""Which single skip connection does a backbone need, and what does it bring: outline or meaning?"""

import sys

from recipes.__main__ import start

SETTINGS, JOB = "recipes.skip_connections.settings:SkipStudySettings", "recipes.skip_connections.job:SkipStudyJob"

if __name__ == "__main__":
    sys.exit(start("skip_study"))
