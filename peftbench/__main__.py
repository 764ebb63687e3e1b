"""`python -m peftbench` is the `peftbench` command."""

import sys

if not sys.flags.safe_path:  # `python -m` puts the current folder first, and what lies there may be a stranger's
    del sys.path[0]

from peftbench.cli import main

if __name__ == "__main__":
    main()
