"""The tokenizer that stands beside a checkpoint's weights, on a disk or at the URL that was given."""

import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from qkspec.checkpoints.remote import is_url, locate
from qkspec.errors import CheckpointError

LOCAL = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")  # one of them tells that there is a tokenizer
FETCHED = ("tokenizer.json", "tokenizer_config.json")  # all that is asked of a URL; the first has to be there
_MAX_BYTES = 1 << 26  # of a file; the largest vocabularies make 35 MB


def beside(path: str) -> Any:
    """Return the tokenizer of transformers for a checkpoint, None where there is none. Code beside it is never run.

    Args:
        path: of the checkpoint: a folder, a file in it, or a URL, whose own revision is asked and nothing else.
    """
    if not is_url(path):
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
        return _load(folder) if any((folder / name).is_file() for name in LOCAL) else None
    found = _fetched(path)
    if FETCHED[0] not in found:
        return None
    with tempfile.TemporaryDirectory(prefix="qkspec-") as scratch:
        for name, data in found.items():
            (Path(scratch) / name).write_bytes(data)
        return _load(Path(scratch))


def _load(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _fetched(url: str) -> dict[str, bytes]:
    """Return the files of FETCHED that lie beside the weights at a URL."""
    folder, found = locate(url)[0], {}
    for name in FETCHED:
        try:
            with closing(folder.blob(name)) as blob:
                if blob.size <= _MAX_BYTES:
                    found[name] = bytes(blob.read(0, blob.size))
        except CheckpointError:
            continue
    return found
