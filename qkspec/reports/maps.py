"""maps.safetensors: pictures of attention maps, and the Monte-Carlo errors of what is read off the predicted ones."""

import json
from pathlib import Path

import numpy as np

from qkspec.analysis import Report
from qkspec.attention import MAP_TOKENS
from qkspec.errors import InputError
from qkspec.maps import CELLS, F64, INDICES, Codes, Maps
from qkspec.readings import Readings
from qkspec.reports.spectra import short, tensor_names
from qkspec.theorem import KINDS

MAP, ERROR = "map/", "error/"  # before <checkpoint>/<module>, named as in spectra.safetensors
GIVEN = tuple(KINDS[1:])  # of maps, each before a "/" likewise: what is not predicted


def write(report: Report, out: Path) -> None:
    """Write the pictures that the report has: 255 √(attention weight), rows are queries."""
    from safetensors.numpy import save_file

    keys = tensor_names(report.readings)
    tensors = {MAP + keys[key]: np.ascontiguousarray(codes) for key, codes in report.maps.pictures.items()}
    tensors |= {ERROR + keys[key]: np.ascontiguousarray(errors) for key, errors in report.maps.errors.items()}
    for kind, own in report.maps.given.items():
        tensors |= {f"{kind}/{keys[key]}": np.ascontiguousarray(codes) for key, codes in own.items()}
    about = {"cell": report.maps.cell, "note": report.maps.note}
    save_file(tensors, out, metadata={"qkspec": json.dumps(about)})  # one entry: several come in any order


def read(path: Path, readings: Readings) -> Maps:
    """Read the pictures of a saved report back.

    Raises:
        InputError: the file cannot be read, or holds other pictures than the table's.
    """
    from safetensors import SafetensorError, safe_open

    pictures: dict[str, Codes] = {}
    errors: dict[str, F64] = {}
    given: dict[str, dict[str, Codes]] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get("qkspec", ""))
            cell, note = int(about["cell"]), str(about["note"])
            present = set(file.keys())
            for key, name in tensor_names(readings).items():
                if MAP + name in present:
                    pictures[key] = file.get_tensor(MAP + name)
                for kind in GIVEN:
                    if f"{kind}/{name}" in present:
                        given.setdefault(kind, {})[key] = file.get_tensor(f"{kind}/{name}")
                if ERROR + name in present:
                    errors[key] = file.get_tensor(ERROR + name)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({short(error)}); it is damaged, write the report again") from error
    shapes_hold = all(
        codes.dtype == np.uint8 and codes.ndim == 3 and codes.shape[1] == codes.shape[2] <= MAP_TOKENS
        for own in (pictures, *given.values())
        for codes in own.values()
    ) and all(
        key in pictures and one.dtype == np.float64 and one.shape == (len(INDICES), len(pictures[key]))
        for key, one in errors.items()
    )
    if not shapes_hold or cell not in CELLS:
        raise InputError(f"{path}: holds tensors that are no pictures of maps; write the report again")
    return Maps(pictures, errors, cell, note, given)
