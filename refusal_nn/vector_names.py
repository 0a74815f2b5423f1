"""What names in files of vectors say: the layer, the place in the stream, and what is a note beside
the vectors."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

PRE, POST = "resid_pre", "resid_post"
# layers.3, layer_3, blocks.3.hook_resid_post, h.3, direction.3, L3, or the number alone.
NUMBERED = re.compile(
    r"(?:^|[^a-z])(?:layers?|blocks?|block|h|l|direction|resid_(?:pre|post|mid)|hidden_states?)"
    r"[._ \-\[]*(\d+)|^(\d+)$"
)
WORDS = {PRE: PRE, POST: POST, "hidden_state": PRE, "decoder_block": POST}
# Vectors of these places are no directions of the residual stream.
ELSEWHERE = re.compile(
    r"attn|attention|mlp|ffn|feed_?forward|(?:layer|rms)_?norm|_norm(?:$|\W)|(?:^|\.)norm(?:$|\W)|"
    r"(?:^|[^a-z])ln_?\d|_proj(?:$|\W)|hook_z|lm_head|(?:^|[^a-z])heads?(?:$|[^a-z])|resid_mid"
)
# Which layers the vectors beside it are of; best_layers, top_layers and n_layers are not that.
LAYERS = re.compile(
    r"^(?:(?:target_|selected_)?layers?(?:_(?:ids?|idx|index|indices|nums?|numbers?))?|"
    r"hidden_layer_ids?)$"
)
POSITIONS = re.compile(r"^(?:token_)?pos(?:itions?)?(?:_(?:ids?|idx))?$")
SITES = re.compile(
    r"^(?:site|read_at|hook(?:_?point|_name|_type)?|activation(?:_name)?|layer_type)$"
)
BASES = re.compile(r"^(?:(?:orthonormal_)?bas[ie]s|cone|subspace|components_?|span)$")
VECTORS = re.compile(
    r"direction|vector|refusal|steer|mean_?diff|diff_?in_?means|(?:^|\W)dim(?:$|\W)"
)
# (pos, layer, d_model), as the published pipeline calls it.
MEANS = re.compile(r"mean_?diffs?")


class Place(NamedTuple):
    """layer: the number in a name; site: where in the stream; elsewhere: not in the stream."""

    layer: int | None
    site: str | None
    elsewhere: bool


def place_in(name: object) -> Place:
    """What a key or a hook's name says."""
    text = str(name).lower()
    found = NUMBERED.search(text)
    layer = int(next(g for g in found.groups() if g)) if found else None
    site = next((site for word, site in WORDS.items() if word in text), None)
    return Place(layer, site, bool(ELSEWHERE.search(text)) and site is None)


def whole(value: object) -> int | None:
    """A whole number, of a layer or a position; None for what is none."""
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,9}", value):
        return int(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer():
        return int(value)
    return None


def wholes(value: object) -> tuple[int, ...]:
    """Whole numbers of a list or of one; empty where anything else is among them."""
    values = value.tolist() if isinstance(value, np.ndarray) else value
    found = [whole(v) for v in (values if isinstance(values, list) else [values])]
    return () if None in found else tuple(found)


def last(name: str) -> str:
    """The last part of a name that joins keys by full stops."""
    return name.rpartition(".")[2].lower()
