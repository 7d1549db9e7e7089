"""`python -m jaxsplit.summary` is `jaxsplit summary`."""

import sys

from jaxsplit.cli.summary import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
