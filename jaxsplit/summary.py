"""`python -m jaxsplit.summary`: see `jaxsplit.report.summary`."""

import sys

from jaxsplit.report.summary import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
