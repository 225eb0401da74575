"""Spectral diagnostics of W_q'W_k for Transformer checkpoints.

The public names are loaded on first use (PEP 562), so that ``import qkspec`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qkspec.analysis import Report, analyze, measure
    from qkspec.optim.adamw2 import AdamW2
    from qkspec.theorem import Limits, Verdict

__version__ = "0.1.0"

_HOMES = {
    "analyze": "qkspec.analysis",
    "measure": "qkspec.analysis",
    "Report": "qkspec.analysis",
    "Limits": "qkspec.theorem",
    "Verdict": "qkspec.theorem",
    "AdamW2": "qkspec.optim.adamw2",
}

__all__ = ["AdamW2", "Limits", "Report", "Verdict", "__version__", "analyze", "measure"]


def __getattr__(name: str) -> object:
    """Import the module that holds a public name when the name is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'qkspec' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
