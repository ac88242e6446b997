"""`python -m gradbase` is the command `gradbase`."""

import sys

from gradbase.cli import main

if __name__ == "__main__":
    sys.exit(main())
