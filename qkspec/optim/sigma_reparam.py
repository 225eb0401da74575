"""σReparam: every linear layer computes with γ/σ₁(W) · W, γ learned (R, "σReparam"), and folds to plain weights."""

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils import parametrize

from qkspec.errors import UsageError

_START = 64  # power iterations before training starts; one a step keeps up from then on
_WEIGHT = "parametrizations.weight.original"
_MODULE = "parametrizations.weight.0."


def spectral_step(weight: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Take one power iteration on both singular vectors.

    Args:
        weight: (m, n).
        u: (m,) left vector; only its shape matters.
        v: (n,) right unit vector.

    Returns:
        the next u and v, unit vectors (zero for a zero weight).
    """
    with torch.autocast(weight.device.type, enabled=False):
        wide = _wide(weight)
        u = normalize(wide @ v.to(wide.dtype), dim=0, eps=1e-30).to(v.dtype)
        return u, _right(weight, u)


def _right(weight: Tensor, u: Tensor) -> Tensor:
    """Return W'u/‖W'u‖ in the dtype of u (as it is stored), computed in single precision at least."""
    wide = _wide(weight)
    return normalize(wide.mT @ u.to(wide.dtype), dim=0, eps=1e-30).to(u.dtype)


def _wide(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float64 else t.float()


def settle(weight: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return u and v as they are where they are this very weight's (v = W'u/‖W'u‖ to the bit), else one iteration on.

    However often a weight is read between two updates (micro-batches, recomputed activations, validation), its vectors
    move once, and nothing but the vectors themselves need be saved to resume. No host synchronization.

    Args:
        weight: (m, n).
        u: (m,) left unit vector.
        v: (n,) right unit vector.
    """
    with torch.autocast(weight.device.type, enabled=False):
        settled = (_right(weight, u) == v).all()
        moved_u, moved_v = spectral_step(weight, u, v)
        return torch.where(settled, u, moved_u), torch.where(settled, v, moved_v)


def effective_weight(weight: Tensor, gamma: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return γ/σ · W with σ = u'Wv; the gradient passes through σ, and u and v are constants.

    Autocast is off here: its products would round σ, and with it the whole layer, to eight bits.

    Args:
        weight: (m, n).
        gamma: ().
        u: (m,) left vector from ``spectral_step``.
        v: (n,) right vector from it.
    """
    with torch.autocast(weight.device.type, enabled=False):
        wide = _wide(weight)
        sigma = torch.dot(u.to(wide.dtype), wide @ v.to(wide.dtype))
        return (wide * (gamma / sigma)).to(weight.dtype)


class SigmaReparam(nn.Module):
    """The parametrization of one weight; in training mode, the first use after an update takes one power iteration.

    γ starts at 1 as in R, or at σ₁(W) with ``keep=True``, which leaves the layer's function as it was,
    to the accuracy of the power iteration.

    Args:
        weight: (m, n), not zero.
        keep: start as the plain layer.
        seed: of the first right vector.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor, *, keep: bool = False, seed: int = 0) -> None:
        super().__init__()
        with torch.no_grad():
            gen = torch.Generator().manual_seed(seed)
            v = normalize(torch.randn(weight.shape[1], generator=gen).to(weight), dim=0)
            u = weight.new_zeros(weight.shape[0])
            for _ in range(_START):
                u, v = spectral_step(weight, u, v)
            sigma = torch.dot(_wide(u), _wide(weight) @ _wide(v)).to(weight.dtype)
        self.gamma = nn.Parameter(sigma.clone() if keep else torch.ones_like(sigma))
        self.register_buffer("u", u)
        self.register_buffer("v", v)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the effective weight (m, n)."""
        if self.training:
            with torch.no_grad():
                u, v = settle(weight, self.u, self.v)
                self.u.copy_(u)
                self.v.copy_(v)
        return effective_weight(weight, self.gamma, self.u.clone(), self.v.clone())


def reparametrize(
    model: nn.Module,
    only: Callable[[str, nn.Linear], bool] | str = "*",
    *,
    keep: bool = False,
    seed: int = 0,
) -> tuple[str, ...]:
    """Put σReparam on a model's linear layers, in place, and return their names.

    γ is one-dimensional: AdamW2 leaves it at the plain lr unless told otherwise, and it should not be decayed.

    Args:
        model: its ``nn.Linear`` layers are changed.
        only: a shell pattern of layer names, or a function of name and layer.
        keep: start at γ = σ₁(W) instead of 1.
        seed: of the power iterations.

    Raises:
        UsageError: no layer matches, or a layer's weight is zero, which no γ/σ can scale.
    """
    chosen = only if callable(only) else (lambda name, _: fnmatchcase(name, only))
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and chosen(n, m)]
    if not layers:
        raise UsageError(f"no linear layer matches {only!r}; print model.named_modules() and name one of them")
    for name, layer in layers:
        if not layer.weight.any():
            raise UsageError(
                f"{name}: its weight is zero, so γ/σ₁(W) is undefined; initialise it first or leave it out"
            )
        parametrization = SigmaReparam(layer.weight.detach(), keep=keep, seed=seed)
        parametrize.register_parametrization(layer, "weight", parametrization)
    return tuple(name for name, _ in layers)


def fold(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with every σReparam weight folded into the plain weight that it stands for.

    Pure: the input is not changed, and names and tensors without σReparam pass through.

    Args:
        state: of a model with ``reparametrize``d layers.

    Raises:
        UsageError: a σReparam weight lacks its γ or its vectors.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(_WEIGHT):
            prefix = name.removesuffix(_WEIGHT)
            missing = [part for part in ("gamma", "u", "v") if f"{prefix}{_MODULE}{part}" not in state]
            if missing:
                raise UsageError(f"{name} lacks {', '.join(missing)}: the state dict is not a whole σReparam layer")
            gamma, u, v = (state[f"{prefix}{_MODULE}{part}"] for part in ("gamma", "u", "v"))
            plain[f"{prefix}weight"] = effective_weight(tensor, gamma, u, v).detach().clone()
        elif _MODULE not in name:
            plain[name] = tensor
    return plain
