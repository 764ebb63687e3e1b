"""peftbench: parameter-efficient fine-tuning methods compared on GLUE, fairly and cheaply.

What a notebook or another program may count on, beside the command; everything else may change with any version:

    run(*words)             run one cell, or find it finished -> Result: record, folder
    count(*words)           how many entries would train, without weights -> Counts
    load_study(study)       the records of a study -> Study: records, folders, frame()
    apply(run, output)      a finished run as a plain transformers folder -> its path
    ConfigError, DataError  what they raise where the words, or the files, are wrong

Words are those of the command, e.g. run("task=rte", "method=lora", "seed=1"). Importing peftbench costs nothing; torch
is imported by the first call that needs it.
"""

from typing import TYPE_CHECKING, Any

from peftbench.ground.version import __version__ as __version__

if TYPE_CHECKING:
    from peftbench.ground.errors import ConfigError as ConfigError
    from peftbench.ground.errors import DataError as DataError
    from peftbench.notebook import apply as apply
    from peftbench.notebook import count as count
    from peftbench.notebook import load_study as load_study
    from peftbench.notebook import run as run

__all__ = ["ConfigError", "DataError", "apply", "count", "load_study", "run"]


def __getattr__(name: str) -> Any:
    """The public functions, imported when first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module = "ground.errors" if name.endswith("Error") else "notebook"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    """What completion offers."""
    return [*__all__, "__version__"]
