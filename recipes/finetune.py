"""python -m recipes.finetune: did the template-similarity loss help, against a control that differs in nothing else?"""

import sys

from recipes.finetuning.job import main

if __name__ == "__main__":
    sys.exit(main())
