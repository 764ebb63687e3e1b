"""The colour, marker and dash of a method: the same in every plot, whatever else a study holds."""

import hashlib
from dataclasses import dataclass

# Seven of Okabe and Ito's colours, which colour-blind readers tell apart: their black is grey here, their yellow left
# out. On white, orange and sky blue have a contrast of 2.3:1, below the 3:1 of WCAG 1.4.11, the others 3.1 to 5.2; an
# orange dark enough would be vermillion to deuteranopes. So no mark is told by its colour alone, but by its shape, too.
# Eleven markers: 7 and 11 have no common factor, so 77 methods differ from each other, and neighbours in the list
# differ in both.
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

# A method's place in this list gives it its looks. A method that is not in it needs no place: its name gives it some.
METHODS = (
    "full", "head", "bitfit", "lora", "id3", "adalora", "random_masking", "spafit", "id3_lora", "houlsby",
    "pfeiffer", "d3", "fish", "id3_adapter", "pafi", "random_masking_structured", "gradual_unfreeze", "hut",
    "light_peft", "linear_adapter", "lst", "supertuning", "dora", "pissa", "rslora", "olora", "vera", "ia3",
    "ln_tuning", "boft", "oft", "loha", "lokr", "hra", "fourierft", "delora", "randlora", "vblora", "waveft",
    "road", "shira", "c3a", "miss", "gralora", "hira", "psoft", "pvera", "tinylora", "unilora", "random_lora",
    "adamss", "beft", "peft", "spafit_4_9_i", "spafit_4_9_ii", "spafit_4_14_i", "spafit_4_14_ii", "spafit_4_19_i",
    "spafit_4_19_ii", "spafit_9_14_i", "spafit_9_14_ii", "spafit_9_19_i", "spafit_9_19_ii",
    "prompt_tuning", "p_tuning", "prefix_tuning", "largest", "deft", "frod", "glora", "lily", "osf", "peanut", "eva",
)  # fmt: skip
LEARNERS = ("finetune", "simplecil", "aper", "mos", "joint", "oracle")  # of sequences: drawn alike in every order


@dataclass(frozen=True)
class Style:
    """How a method is drawn.

    Attributes:
        colour: as #RRGGBB; marker: matplotlib's sign.
        filled: false for methods that have no place in `METHODS`, whose looks are drawn from their name, for learners
            of sequences, and for what was made of a method's runs.
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
    more = 1 + _drawn(variant, len(DASHES) - 1) if variant else 0
    if method in METHODS:
        place = METHODS.index(method)
        dash = DASHES[(place // len(COLOURS) + more) % len(DASHES)]
        return Style(COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)], True, dash)
    if (learner := method.partition(",")[0]) in LEARNERS:
        place = LEARNERS.index(learner)
        return Style(COLOURS[place], MARKERS[place], False, DASHES[more % len(DASHES)])
    what, of, whose = method.partition(" of ")
    if of and (made_from := whose.partition(",")[0].split()[0]) in METHODS:  # made of its runs: its colour, open
        made = what + whose.removeprefix(made_from)
        colour = COLOURS[METHODS.index(made_from) % len(COLOURS)]
        return Style(colour, MARKERS[_drawn(made, len(MARKERS))], False, DASHES[_drawn(made + variant, len(DASHES))])
    tint, marker = divmod(_drawn(method, len(TINTS) * len(MARKERS)), len(MARKERS))
    return Style(TINTS[tint], MARKERS[marker], False, DASHES[(tint + more) % len(DASHES)])


def _mixed(most: str, rest: str) -> str:
    """Three parts of a colour and one of another, as #RRGGBB."""
    parts = ((int(most[at : at + 2], 16), int(rest[at : at + 2], 16)) for at in (1, 3, 5))
    return "#" + "".join(f"{(3 * one + other) // 4:02X}" for one, other in parts)


def _drawn(name: str, many: int) -> int:
    """A number below `many` that is a name's own."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % many


# Of methods without a place: each colour with a little of each. 49 tints and 11 markers make 539 looks.
TINTS = tuple(_mixed(most, rest) for most in COLOURS for rest in COLOURS)
