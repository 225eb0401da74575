"""Remedies for a training run whose heads collapse: one line each, loaded when asked for."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qkspec.optim.adamw2 import AdamW2
    from qkspec.optim.observer import Observer, observe
    from qkspec.optim.roles import Role
    from qkspec.optim.sigma_reparam import SigmaReparam, fold, reparametrize

REMEDIES: tuple[tuple[str, str], ...] = (
    ("adamw2", "AdamW whose update of a matrix may not exceed the fraction τ of the matrix's spectral norm (AdamW²)"),
    ("sigma_reparam", "every linear layer as γ/σ₁(W) · W with a learned γ (σReparam)"),
)

_HOMES = {
    "AdamW2": "qkspec.optim.adamw2",
    "Observer": "qkspec.optim.observer",
    "observe": "qkspec.optim.observer",
    "Role": "qkspec.optim.roles",
    "SigmaReparam": "qkspec.optim.sigma_reparam",
    "fold": "qkspec.optim.sigma_reparam",
    "reparametrize": "qkspec.optim.sigma_reparam",
}

__all__ = ["REMEDIES", "AdamW2", "Observer", "Role", "SigmaReparam", "fold", "observe", "reparametrize"]


def __getattr__(name: str) -> object:
    """Import the module that holds a public name when the name is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'qkspec.optim' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
