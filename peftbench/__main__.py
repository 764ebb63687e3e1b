"""`python -m peftbench` is the `peftbench` command."""

from peftbench.cli import main

if __name__ == "__main__":
    main()
