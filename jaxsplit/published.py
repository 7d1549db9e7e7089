"""`python -m jaxsplit.published`: see `jaxsplit.recipes.published`."""

import sys

from jaxsplit.recipes.published import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
