"""python -m recipes.finetune: did the template-similarity loss help, against a control that differs in nothing else?"""

import sys

from recipes.finetuning.job import FinetuneJob
from recipes.kit.job import run_recipe

if __name__ == "__main__":
    sys.exit(run_recipe(FinetuneJob))
