"""`python -m jaxsplit VERB ...` is `jaxsplit VERB ...`."""

import sys

from jaxsplit import cli

if __name__ == "__main__":
    sys.exit(cli.run())
