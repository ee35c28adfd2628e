"""State dicts from files of others, without running code of theirs."""

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

PLAIN = re.compile(r"[<>=|]?(\?|b1|[iu][1248]|f[248])")  # NumPy's types of numbers that PyTorch has too


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """A weights file's tensors; of a checkpoint, those under its usual key. Arrays of NumPy become tensors.

    Raises ValueError for a file that is no state dict.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals(_NUMPY):
            # The zip layout can be mapped into memory; PyTorch's older one is read as a whole.
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # both readers raise many kinds for a file that is not theirs
        # PyTorch's goes on with the advice to let the file run its code.
        lines = str(error).split("WeightsUnpickler error: ")[-1].split(" Please use ")[0].strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise ValueError(
            f"cannot be read as a plain state dict ({reason}); "
            "a TorchScript archive must be saved as one first (README.md, Weights), a broken file replaced"
        ) from error
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    state = {n: v.tensor() if isinstance(v, _Array) else v for n, v in state.items()} if isinstance(state, dict) else {}
    if not state or not all(isinstance(n, str) and isinstance(v, torch.Tensor) for n, v in state.items()):
        raise ValueError("must hold a state dict, names to tensors, and nothing else")
    return state


class _DType:
    """Stands in for numpy.dtype: a type of plain numbers. NumPy's own would take any, such as one of objects, for which
    numpy.ndarray takes the bytes of a file for addresses in memory."""

    def __init__(self, code: str, *_: object):
        if not isinstance(code, str) or not PLAIN.fullmatch(code):
            raise ValueError(f"an array of type {str(code)[:20]!r} is not of plain numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(">" if state[1] == ">" else "<")  # `|` of types of one byte


class _Array:
    """Stands in for numpy.ndarray: what its pickle says of an array of plain numbers."""

    values = np.empty(0, "float32")

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, by_columns, content = state
        self.values = np.ndarray(shape, kind.dtype, content, order="F" if by_columns else "C")

    def tensor(self) -> torch.Tensor:
        """A copy in the byte order of this machine."""
        return torch.from_numpy(np.array(self.values, self.values.dtype.newbyteorder("="), order="C"))


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _scalar(kind: _DType, content: bytes) -> Any:
    return np.frombuffer(content, kind.dtype)[0].item()


def _no_bytes() -> bytes:
    return b""


# What a pickle of arrays names, as NumPy 1 and 2 do, and what is called in its place.
_NUMPY: list[Any] = [
    (_Array, "numpy.ndarray"),
    (_DType, "numpy.dtype"),
    (_no_bytes, "builtins.bytes"),  # of an array without numbers
    *((_reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
