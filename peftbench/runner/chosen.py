"""A cell with what a search chose for it."""

from dataclasses import asdict, replace

from peftbench.config.spec import Cell
from peftbench.record import Search


def chosen(cell: Cell, search: Search | None) -> Cell:
    """The cell with the learning rates and the strata of its search; the same where nothing was searched."""
    if search is None:
        return cell
    method = cell.method
    if search.strata:
        own = method.arguments["strata"]
        strata = {name: {**own[name], **asdict(taken)} for name, taken in search.strata.items()}
        method = replace(method, arguments={**method.arguments, "strata": strata})
    head_lr = search.chosen_head or cell.protocol.head_lr
    return replace(cell, method=method, protocol=replace(cell.protocol, lr=search.chosen, head_lr=head_lr))
