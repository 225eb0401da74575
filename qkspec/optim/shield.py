"""What a step is taken out of, wherever the user takes it: a surrounding autocast, and torch.compile."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def unrounded(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Turn autocast off where these tensors are: it would round the products behind every norm to bfloat16."""
    with ExitStack() as stack:
        for kind in {t.device.type for t in tensors}:
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """Leave a function as it is inside what torch.compile compiles; with ``fullgraph=True`` that is torch's error.

    What is remembered from step to step is views of one another, of which a compiled step has made wrong numbers.
    """
    kept: Callable[P, R] = torch.compiler.disable(function, reason="what is remembered goes on outside of graphs")  # type: ignore[no-untyped-call]
    return kept
