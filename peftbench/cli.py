"""The entry point of the `peftbench` command: Ctrl-C ends it without a word from its first line on."""

import os
import signal


def main() -> None:
    """Entry point of the `peftbench` command and of `python -m peftbench`."""
    signal.signal(signal.SIGINT, lambda number, _: os._exit(128 + number))  # until there is something to put in order
    from peftbench.commands import dispatch

    dispatch.main()
