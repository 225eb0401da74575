"""spectra.safetensors: float64 singular values, one tensor (heads, d_q) a checkpoint and attention module."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qkspec.analysis import Report
from qkspec.errors import InputError
from qkspec.readings import Readings
from qkspec.reports.names import escape

F64 = NDArray[np.float64]


def write(report: Report, out: Path) -> None:
    """Write the spectra that the report kept, named <checkpoint>/<module>, the run in front where there are several.

    One tensor is in memory at a time: a thousand checkpoints of a large model have gigabytes of singular values.
    """
    keys = tensor_names(report.readings)
    kept = [name for name in report.spectra if name in keys]
    header: dict[str, object] = {"__metadata__": {"format": "qkspec"}}
    end = 0
    for name in kept:
        shape = report.spectra[name].shape
        start, end = end, end + 8 * math.prod(shape)
        header[keys[name]] = {"dtype": "F64", "shape": list(shape), "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with out.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in kept:
            file.write(np.ascontiguousarray(report.spectra[name], dtype="<f8").tobytes())


def tensor_names(readings: Readings) -> dict[str, str]:
    """Map the keys of Report.spectra, "run/checkpoint/module", to the tensors' names in the file."""
    triples = dict.fromkeys(zip(readings["run"], readings["checkpoint"], readings["module"], strict=True))
    several = len({run for run, *_ in triples}) > 1
    return {"/".join(triple): escape("/".join(triple if several else triple[1:])) for triple in triples}


class SavedSpectra(Mapping[str, F64]):
    """The spectra of a saved report, read one at a time when asked for.

    Args:
        path: of spectra.safetensors.
        readings: the report's table, whose rows say which spectra there can be and of what shape.

    Raises:
        InputError: the file cannot be read, or holds other spectra than the table's.
    """

    def __init__(self, path: Path, readings: Readings) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            self._file = safe_open(path, framework="numpy", backend="pread")
            present = set(self._file.keys())  # type: ignore[no-untyped-call]
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(
                f"{path}: cannot be read ({short(error)}); it is damaged, write the report again"
            ) from error
        self._path = path
        self._names = {key: name for key, name in tensor_names(readings).items() if name in present}
        self._least = _least_shapes(readings)

    def __getitem__(self, key: str) -> F64:
        from safetensors import SafetensorError

        try:
            sigma = np.asarray(self._file.get_tensor(self._names[key]))  # type: ignore[no-untyped-call]
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"{self._path}: cannot be read ({short(error)}); write the report again") from error
        heads, d_q = self._least[key]
        if sigma.dtype != np.float64 or sigma.ndim != 2 or sigma.shape[0] < heads or sigma.shape[1] != d_q:
            raise InputError(
                f"{self._path}: {self._names[key]} is no float64 tensor of {heads} heads or more and d_q {d_q}; "
                "write the report again"
            )
        return sigma

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _least_shapes(readings: Readings) -> dict[str, tuple[int, int]]:
    """Return, by the keys of Report.spectra, up to which head there are rows, and their d_q."""
    out: dict[str, tuple[int, int]] = {}
    names = ("run", "checkpoint", "module", "head", "d_q")
    for run, checkpoint, module, head, d_q in zip(*(readings[name].tolist() for name in names), strict=True):
        key = f"{run}/{checkpoint}/{module}"
        out[key] = (max(head + 1, out.get(key, (0, 0))[0]), d_q)
    return out


def short(error: Exception) -> str:
    """Return an error of a file's reader as a few words."""
    return escape(" ".join(str(error).split())[:120])
