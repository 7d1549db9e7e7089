"""`python -m jaxsplit.published` is `jaxsplit published`."""

import sys

from jaxsplit.cli.published import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
