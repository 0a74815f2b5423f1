"""An SVG document as a part of a page: only drawing, no names that meet another picture's. Pure."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from refusal_nn.errors import CorruptArtefact
from refusal_nn.hover import SVG, XLINK

# What matplotlib draws with; whatever else a file may hold is left out.
ELEMENTS = ("svg", "g", "defs", "path", "clipPath", "rect", "use", "image", "text", "tspan")
ELEMENTS += ("title",)
ATTRIBUTES = ("d", "x", "y", "width", "height", "viewBox", "transform", "style", "clip-path")
ATTRIBUTES += ("id", "preserveAspectRatio", "version")
REFERENCE = re.compile(r"url\(#([^)]*)\)")
NEAR = re.compile(r"#(.+)|data:image/png;base64,[\w+/=\s]*")


def svg(path: Path, prefix: str, label: str) -> str:
    """An <svg> element to stand in HTML, its ids beginning with the prefix and its name, for a
    reader who cannot see it, label. Raises CorruptArtefact."""
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except (ElementTree.ParseError, OSError) as fault:
        raise CorruptArtefact(f"{path} is no SVG ({fault}); delete it and draw it again") from fault
    if root.tag != f"{{{SVG}}}svg":
        raise CorruptArtefact(f"{path} is no SVG; delete it and draw it again")
    _keep_drawing(root)
    _rename(root, prefix)
    width = root.attrib.pop("width", "")
    root.attrib.pop("height", None)
    root.attrib |= {"role": "img", "aria-label": label}
    if re.fullmatch(r"[\d.]+pt", width):
        root.set("style", f"--width: {width}")
    return ElementTree.tostring(root, encoding="unicode")


def _keep_drawing(element: ElementTree.Element) -> None:
    """Drop what is not drawn, and take names out of their namespaces, as HTML has them."""
    for child in list(element):
        # A comment's tag is no text.
        if str(child.tag).removeprefix(f"{{{SVG}}}") in ELEMENTS:
            _keep_drawing(child)
        else:
            element.remove(child)
    element.tag = element.tag.removeprefix(f"{{{SVG}}}")
    near = element.get(f"{{{XLINK}}}href", "")
    kept = {k: v for k, v in element.attrib.items() if k in ATTRIBUTES}
    element.attrib.clear()
    element.attrib.update(kept | ({"href": near} if NEAR.fullmatch(near) else {}))
    if element.text and not element.text.strip():
        element.text = None
    element.tail = None


def _rename(root: ElementTree.Element, prefix: str) -> None:
    """Ids that are referred to begin with the prefix, the others go."""
    used = set()
    for element in root.iter():
        for name, value in element.attrib.items():
            used |= {value[1:]} if name == "href" else set(REFERENCE.findall(value))
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)
        for name, value in element.attrib.items():
            if name == "id":
                element.set(name, f"{prefix}-{value}")
            elif name == "href" and value.startswith("#"):
                element.set(name, f"#{prefix}-{value[1:]}")
            else:
                element.set(name, REFERENCE.sub(rf"url(#{prefix}-\1)", value))
