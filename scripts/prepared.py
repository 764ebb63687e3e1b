"""Imported before torch by benches that run in their own process: threads and how they wait, as a command sets them."""

from peftbench.ground import environment

environment.prepare()
