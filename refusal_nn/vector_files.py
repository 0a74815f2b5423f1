"""What a file of vectors holds, in plain containers of numpy arrays, read without running anything
in it."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from zipfile import BadZipFile

import numpy as np
from safetensors import SafetensorError, safe_open

from refusal_nn.errors import InputError
from refusal_nn.names import is_file
from refusal_nn.vector_names import POST, PRE

# A tree of mappings and lists; its leaves are float64 arrays, numbers, texts and None.
Held = object
# What readers raise on a file that is none of theirs, or holds more than tensors.
UNREADABLE = (OSError, UnpicklingError, EOFError, RuntimeError, ValueError, TypeError)
UNREADABLE += (KeyError, IndexError, AttributeError, OverflowError, MemoryError)
UNREADABLE += (SafetensorError, BadZipFile, struct.error)
DEEPEST = 6
# Directions of 100 layers, 8,192 wide, at 32 positions are 200 MB: above, it is a model's weights.
LARGEST = 2**30
OUR_METADATA = "refusal_nn"


def read_held(path: Path) -> tuple[Held, Mapping[str, object]]:
    """A file's content, and the metadata that it carries beside it ({} but for .safetensors).
    Raises InputError."""
    suffix = path.suffix.lower()
    if not is_file(path):
        raise InputError(f"{path} is no file")
    if suffix not in READERS:
        raise InputError(
            f"{path}: {', '.join(READERS)} are read (.pt, .pth and .bin as tensors alone); other "
            "pickles can run code, convert them to .safetensors first"
        )
    what, read = READERS[suffix]
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path.stat().st_size / 1e9:.1f} GB are no file of directions")
        held, about = read(path)
        return _plain(held, DEEPEST), _plain(about, DEEPEST)
    except UNREADABLE as error:
        raise InputError(f"{path} cannot be read as {what}: {_reason(error)}") from None


def _safetensors(path: Path) -> tuple[Held, Mapping[str, object]]:
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    ours = json.loads(metadata.get(OUR_METADATA, "{}"))
    return held, metadata | (ours if isinstance(ours, dict) else {})


def _torch(path: Path) -> tuple[Held, Mapping[str, object]]:
    """torch.load refuses, unrun, whatever is not a tensor, or an array of numbers, in a plain
    container."""
    import torch

    with torch.serialization.safe_globals(_numpys()):
        return torch.load(path, map_location="cpu", weights_only=True), {}


def _numpys() -> list[object]:
    """What a pickled array or number of numpy is rebuilt by; none of it calls anything else."""
    multiarray = np._core.multiarray
    kinds = (np.float16, np.float32, np.float64, np.int32, np.int64)
    parts = [multiarray._reconstruct, multiarray.scalar, np.ndarray, np.dtype]
    # Arrays of numpy 1 name the module by its older name.
    older = [(part, f"numpy.core.multiarray.{part.__name__}") for part in parts[:2]]
    return [*parts, *older, *(type(np.dtype(kind)) for kind in kinds)]


def _numpy(path: Path) -> tuple[Held, Mapping[str, object]]:
    held = np.load(path, allow_pickle=False)
    return (held if isinstance(held, np.ndarray) else dict(held)), {}


def _json(path: Path) -> tuple[Held, Mapping[str, object]]:
    return json.loads(path.read_text(encoding="utf-8-sig")), {}


def _gguf(path: Path) -> tuple[Held, Mapping[str, object]]:
    """A control vector: a tensor direction.<layer> for each layer. repeng's are of what leaves a
    block; llama.cpp's cvector-generator numbers the same place one higher, and writes the number of
    layers with a sign (tools/cvector-generator/cvector-generator.cpp, mean.hpp)."""
    from gguf import GGUFReader, GGUFValueType

    reader = GGUFReader(path)
    named = {t.name: t for t in reader.tensors}
    layers = {name: re.fullmatch(r"direction\.(-?\d+)", name) for name in named}
    if not named or None in layers.values():
        raise ValueError("it holds no control vector, direction.<layer>")
    packed = [t.tensor_type.name for t in reader.tensors if t.data.dtype.kind != "f"]
    if packed:
        raise ValueError(f"its tensors are {packed[0]}, not floats")
    count = reader.fields.get("controlvector.layer_count")
    signed = count is not None and count.types[0] == GGUFValueType.INT32
    # Copied, since the arrays are views of a map of the file.
    held = {int(found[1]): np.array(named[name].data) for name, found in layers.items()}
    return held, {"site": PRE if signed else POST}


READERS: dict[str, tuple[str, Callable[[Path], tuple[Held, Mapping[str, object]]]]] = {
    ".safetensors": ("safetensors", _safetensors),
    **dict.fromkeys((".pt", ".pth", ".bin"), ("tensors alone (.safetensors is)", _torch)),
    **dict.fromkeys((".npy", ".npz"), ("numpy arrays", _numpy)),
    **dict.fromkeys((".json", ".svec"), ("JSON", _json)),
    ".gguf": ("GGUF", _gguf),
}


def _plain(held: object, depth: int) -> Held:
    """Tensors, arrays and lists of numbers as float64 arrays, texts of numpy as str. Raises
    ValueError for anything else."""
    if depth < 0:
        raise ValueError("its containers are nested too deeply")
    if isinstance(held, Mapping):
        return {_key(key): _plain(value, depth - 1) for key, value in held.items()}
    if isinstance(held, list | tuple | set):
        return _listed([_plain(value, depth - 1) for value in held])
    if held is None or isinstance(held, str | bool | int | float):
        return held
    if isinstance(held, np.ndarray) and held.dtype.kind in "US":
        return held.tolist()
    return _array(held)


def _key(key: object) -> int | str:
    if not isinstance(key, int | str):
        raise ValueError(f"it has keys of {type(key).__name__}, not of layers or names")
    return key


def _array(held: object) -> np.ndarray | float:
    import torch

    if isinstance(held, torch.Tensor):
        if held.is_complex():
            raise ValueError("it holds complex numbers")
        held = held.detach().double().numpy()
    if not isinstance(held, np.ndarray | np.generic) or held.dtype.kind not in "biuf":
        raise ValueError(f"it holds a {type(held).__name__}, not a tensor of numbers")
    return np.asarray(held, np.float64) if held.ndim else float(held)


def _listed(values: list[Held]) -> Held:
    """A list of numbers, or of arrays of one shape, as one array; null among arrays is a row of
    nan, no vector."""
    if values and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return np.array(values, np.float64)
    shapes = {v.shape for v in values if isinstance(v, np.ndarray)}
    # Lists of tables are no positions: steps of a training, or one for each of many things.
    flat = all(len(shape) == 1 or set(shape[:-1]) == {1} for shape in shapes)
    if len(shapes) == 1 and flat and all(v is None or isinstance(v, np.ndarray) for v in values):
        return np.stack([np.full(*shapes, np.nan) if v is None else v for v in values])
    return values


def _reason(error: Exception) -> str:
    """In one line; torch's own advises to load the file without weights_only."""
    if isinstance(error, UnpicklingError):
        return "it holds more than tensors, which could run code, or is damaged"
    return str(error).partition("\n")[0] or type(error).__name__
