"""`python -m jaxsplit.data.prepare`."""

import sys

from jaxsplit.data.prepare import main

sys.exit(main(sys.argv[1:]))
