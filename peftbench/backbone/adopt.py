"""A transformers model made to use this bench's dropout and attention, and to keep less for the way back.

Most architectures ask transformers for an attention by name. The modules of those that do not get a class of ours,
with the same parameters under the same names.
"""

import importlib
from typing import Any

from torch import nn

from peftbench.backbone import cheap
from peftbench.backbone.attention import ATTENTION
from peftbench.backbone.dropout import Noise, replace_dropout

# The library's module whose classes ask for no attention by name -> ours, whose CLASSES stand for them.
OWN = {
    "transformers.models.mpnet.modeling_mpnet": "peftbench.backbone.mpnet",
    "transformers.models.deberta_v2.modeling_deberta_v2": "peftbench.backbone.deberta",
}


def adopt(module: nn.Module, noise: Noise) -> None:
    """Let a transformers model use this bench's dropout, and its attention where its configuration names it.

    What has another class afterwards computes the same function.
    """
    replace_dropout(module, noise)
    for inner in module.modules():
        inner.__class__ = cheap.CLASSES.get(type(inner), type(inner))
    config: Any = getattr(module, "config", None)
    if getattr(config, "_attn_implementation", None) != ATTENTION:
        return
    for inner in module.modules():
        if ours := OWN.get(type(inner).__module__):
            inner.__class__ = importlib.import_module(ours).CLASSES.get(type(inner), type(inner))
