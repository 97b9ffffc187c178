"""How far do image labels alone go, do unpooled features cut false positives, and what do pseudo-labels give?"""

import sys

from recipes.__main__ import start

SETTINGS, JOB = "recipes.image_labels.settings:WeakSettings", "recipes.image_labels.job:WeakJob"

if __name__ == "__main__":
    sys.exit(start("weak_supervision"))
