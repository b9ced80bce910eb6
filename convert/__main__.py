"""`python -m convert --help` says how."""

import sys

from convert.program import main

if __name__ == "__main__":
    sys.exit(main())
