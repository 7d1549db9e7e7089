"""`python -m jaxsplit.torch_import` is `jaxsplit import-torch`."""

import sys

from jaxsplit.cli.import_torch import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
