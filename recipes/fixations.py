"""python -m recipes.fixations: from every labelled pixel back to the image points it rests on, drawn and counted."""

import sys

from recipes.tracing.job import main

if __name__ == "__main__":
    sys.exit(main())
