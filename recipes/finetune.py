"""Did the template-similarity loss help, against a control that differs in nothing else?"""

import sys

from recipes.__main__ import start

SETTINGS, JOB = "recipes.finetuning.settings:FinetuneSettings", "recipes.finetuning.job:FinetuneJob"

if __name__ == "__main__":
    sys.exit(start("finetune"))
