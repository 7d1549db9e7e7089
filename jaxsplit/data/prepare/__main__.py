"""`python -m jaxsplit.data.prepare` is `jaxsplit prepare`."""

import sys

from jaxsplit.cli.prepare import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
