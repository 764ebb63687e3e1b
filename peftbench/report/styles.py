"""The colour, marker and dash of a method: the same in every plot, whatever else a study holds."""

import hashlib
from dataclasses import dataclass

# Seven of Okabe and Ito's colours, which colour-blind readers tell apart, readable on white and on black: their black
# is grey here, their yellow left out. Eleven markers: 7 and 11 have no common factor, so 77 methods differ from each
# other, and neighbours in the list differ in both.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#808080")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "p", "<", ">")
PLOTLY = dict(
    zip(
        MARKERS,
        ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star", "pentagon",
         "triangle-left", "triangle-right"),
        strict=True,
    )
)  # fmt: skip
DASHES = ("solid", "dash", "dashdot", "dot")

# A method's place gives it its looks: new methods are added at the end, and no other changes.
METHODS = (
    "full", "head", "bitfit", "lora", "id3", "adalora", "random_masking", "spafit", "id3_lora", "houlsby",
    "pfeiffer", "d3", "fish", "id3_adapter", "pafi", "random_masking_structured", "gradual_unfreeze", "hut",
    "light_peft", "linear_adapter", "lst", "supertuning", "dora", "pissa", "rslora", "olora", "vera", "ia3",
    "ln_tuning", "boft", "oft", "loha", "lokr", "hra", "fourierft", "delora", "randlora", "vblora", "waveft",
    "road", "shira", "c3a", "miss", "gralora", "hira", "psoft", "pvera", "tinylora", "unilora", "random_lora",
    "adamss", "beft", "peft", "spafit_4_9_i", "spafit_4_9_ii", "spafit_4_14_i", "spafit_4_14_ii", "spafit_4_19_i",
    "spafit_4_19_ii", "spafit_9_14_i", "spafit_9_14_ii", "spafit_9_19_i", "spafit_9_19_ii",
    "prompt_tuning", "p_tuning", "prefix_tuning",
)  # fmt: skip


@dataclass(frozen=True)
class Style:
    """How a method is drawn.

    Attributes:
        colour: as #RRGGBB; marker: matplotlib's sign.
        filled: false for methods of somebody else, whose looks are drawn from their name.
        dash: of lines; another budget or protocol of the same method has another.
    """

    colour: str
    marker: str
    filled: bool
    dash: str

    @property
    def symbol(self) -> str:
        """Plotly's name of the marker."""
        return PLOTLY[self.marker] + ("" if self.filled else "-open")


def style(method: str, variant: str = "") -> Style:
    """A method's style, by its name alone.

    Args:
        variant: what else its row's name says: budget, backbone, another protocol.
    """
    place = METHODS.index(method) if method in METHODS else _drawn(method)
    dash = place // len(COLOURS) + (1 + _drawn(variant) % (len(DASHES) - 1) if variant else 0)
    return Style(
        COLOURS[place % len(COLOURS)],
        MARKERS[place % len(MARKERS)],
        method in METHODS,
        DASHES[dash % len(DASHES)],
    )


def _drawn(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % (len(COLOURS) * len(MARKERS))
