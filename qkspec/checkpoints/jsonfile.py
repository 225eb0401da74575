"""JSON written by strangers: capped before it is read, and every way it can fail is one sentence."""

import json
from collections.abc import Callable
from typing import Any, NoReturn

from qkspec.checkpoints.files import Blob
from qkspec.errors import CheckpointError

# The smallest JSON value that costs memory, "[],", takes 3 bytes and becomes 64: 12 MiB cost at most 270 MB.
MAX_JSON = 12 << 20
MAX_BRACKETS = 1 << 20


def read_object(blob: Blob, limit: int = MAX_JSON) -> dict[str, Any]:
    """Return the JSON object that fills ``blob``.

    Raises:
        CheckpointError: it is larger than ``limit`` bytes, no UTF-8, no JSON, or no object.
    """
    if blob.size > limit:
        raise CheckpointError(
            f"{blob.path}: is {blob.size} bytes, more than the {limit} that such a file may have; is it the right file?"
        )
    return parse_object(bytes(blob.read(0, blob.size)), blob.path)


def parse_object(
    data: bytes, path: str, pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> dict[str, Any]:
    """Return ``data`` as a JSON object; ``path`` names it in messages, ``pairs_hook`` sees every object's pairs."""
    if data.count(b"[") + data.count(b"{") > MAX_BRACKETS:
        raise CheckpointError(
            f"{path}: its JSON holds more than {MAX_BRACKETS} lists and objects; no checkpoint needs that"
        )
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=pairs_hook, parse_constant=_no_constant)
    except RecursionError as error:
        raise CheckpointError(f"{path}: its JSON is nested too deeply to be read") from error
    except ValueError as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(
            f"{path}: is not valid JSON ({reason}); it is damaged or incomplete, save it again"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(value).__name__} where an object was expected")
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")
