"""What names in files of vectors say: the layer, the place in the stream, and what is a note beside
the vectors."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

PRE, POST = "resid_pre", "resid_post"
# layers.3, layer_3, layer-3, layers[3], blocks.3.hook_resid_post, h.3, L3, 3-resid-post, or the
# number alone; direction_3 is the third of them, of any layer.
NUMBERED = re.compile(
    r"(?:^|[^a-z])(?:layers?|blocks?|resid_(?:pre|post)|hidden_states?)-?[._ \[]*(-?\d+)|"
    r"(?:^|\.)h\.(\d+)|^l(\d+)$|^(\d+)[._-]+resid|^(-?\d+)$"
)
WORDS = {
    PRE: re.compile(r"resid(?:ual)?_pre|block_input|hidden_state|\.input$"),
    POST: re.compile(r"resid(?:ual)?_post|block_output|decoder_block|\.output$"),
}
# Vectors of these places are no directions of the residual stream.
ELSEWHERE = re.compile(
    r"attn|attention|mlp|ffn|feed_?forward|(?:layer|rms)_?norm|_norm(?:$|\W)|(?:^|\.)norm(?:$|\W)|"
    r"(?:^|[^a-z])ln_?\d|_proj(?:$|\W)|hook_z|lm_head|(?:^|[^a-z])heads?(?:$|[^a-z])|resid_mid|"
    r"hook_normalized|(?:^|[^a-z])w_u(?:$|\W)|unembed"
)
# Which layers the vectors beside it are of; best_layers, top_layers and n_layers are not that.
LAYERS = re.compile(
    r"^(?:(?:target_|selected_|source_)?layers?(?:_(?:ids?|idx|index|indices|nums?|numbers?))?|"
    r"hidden_layer_ids?)$"
)
# What moves the count of rows in a way that is not read.
MOVED = re.compile(r"^(?:start|first)_layer|^layer_(?:start|offset|range|step)")
POSITIONS = re.compile(r"^(?:token_)?pos(?:itions?)?(?:_(?:ids?|idx))?$")
SITES = re.compile(
    r"^(?:site|read_at|hook(?:_?point|_name|_type)?|activation(?:_name)?|layer(?:_type)?)$"
)
BASES = re.compile(r"^(?:(?:orthonormal_)?bas[ie]s|cone|subspace|components_?|span)$")
VECTORS = re.compile(
    r"direction|vector|steer|mean_?diff|diff_?in_?means|(?:^|[_.])(?:dir|vec|rv)s?(?:$|[_.\d])"
)
# (pos, layer, d_model), as the published pipeline calls it.
MEANS = re.compile(r"mean_?diffs?")
MANY = re.compile(r"\[?\s*(-?\d{1,9}(?:\s*,\s*-?\d{1,9})*)\s*\]?")


class Place(NamedTuple):
    """layer: the number in a name; site: where in the stream; elsewhere: not in the stream."""

    layer: int | None
    site: str | None
    elsewhere: bool


def spelt(name: object) -> str:
    """In small letters with _ between words: hookName and resid-pre as hook_name and resid_pre."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(name)).lower()
    return re.sub(r"(?<=[a-z])-(?=[a-z])", "_", text)


def place_in(name: object) -> Place:
    """What a key or a hook's name says."""
    text = spelt(name)
    found = NUMBERED.search(text)
    layer = int(next(g for g in found.groups() if g)) if found else None
    site = next((site for site, words in WORDS.items() if words.search(text)), None)
    return Place(layer, site, bool(ELSEWHERE.search(text)))


def whole(value: object) -> int | None:
    """A whole number, of a layer or a position; None for what is none."""
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,9}", value):
        return int(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer():
        return int(value)
    return None


def wholes(value: object) -> tuple[int, ...]:
    """Whole numbers of a list, also of one as text, or of one; empty where anything else is among
    them."""
    if isinstance(value, str) and MANY.fullmatch(value):
        value = MANY.fullmatch(value)[1].split(",")
    values = value.tolist() if isinstance(value, np.ndarray) else value
    values = values if isinstance(values, list) else [values]
    found = [whole(v.strip() if isinstance(v, str) else v) for v in values]
    return () if None in found else tuple(found)


def is_list(value: object) -> bool:
    """Whether this is several numbers, or one in a list, as an array or as text."""
    return isinstance(value, np.ndarray) or (isinstance(value, str) and not value.isdecimal())


def last(name: str) -> str:
    """The last part of a name that joins keys by full stops."""
    return spelt(name).rpartition(".")[2]
