"""What a running model really computes: q and k caught in its attention call, as maps of the module's own input.

Nothing here knows a tensor's name. Every attention-like module gets random input in place of its own (so that the map
is found on the whole space and not on what a LayerNorm lets through), sequences of length one at position zero (where
rotation is the identity), and norms inside the module are switched off (so that the map is linear). The q and k that
arrive at the attention call are regressed on that input.
"""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

ATTENTION = re.compile(
    r"^KimiLinearAttention$|^(?!.*(Lightning|Linear|Kimi(?!_K25)|DabDetrAttention|ChannelAttention|LSH|ReformerAttention)).*(Attention(?!\w*(Output|Pool|Mask|Embed|Rotary|Cache|\w*Projection))|Attn|MLA$)"
)
NORM = re.compile(r"(?<!Batch)Norm(\d[dD])?$")  # a batch norm at rest is an affine map
ROTATION = re.compile(r"apply\w*_(rotary|rope)|rotate_(half|pairwise|every_two|queries_or_keys)|multidimensional_rope")
PRODUCTS = {
    torch.matmul,
    torch.bmm,
    torch.baddbmm,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.Tensor.baddbmm,
    torch.Tensor.bmm,
}


@dataclass
class Caught:
    """One attention call.

    Args:
        path: the module's path in the live model.
        x, y: (samples, d) random inputs of queries and of keys.
        q, k: (samples, heads, d_q) as they arrive at the call.
        factor: what the call multiplies q'k by, where it says; None where the softmax has to tell.
        dots: (batch, heads, tokens, tokens') q'k, held until the softmax tells their factor.
        slopes: (heads,) that factor.
        natural: (samples, d) the input the module would have had, and the keys' likewise.
        normed: norm modules that ran inside, between input and call.
        causal: what the call says, or else the module; None where neither says anything.
        softcap, clamp: what the module or its config says of them.
        turned: whether a rotation ran inside, between input and call.
    """

    path: str
    x: torch.Tensor
    y: torch.Tensor
    q: torch.Tensor
    k: torch.Tensor
    factor: float | None
    natural: torch.Tensor
    natural_y: torch.Tensor
    dots: torch.Tensor | None = None
    slopes: torch.Tensor | None = None
    normed: list[str] = field(default_factory=list)
    causal: bool | None = None
    softcap: float | None = None
    clamp: float | None = None
    turned: bool = False


class Watch(TorchFunctionMode):
    """Catch the first product of two batched matrices inside an attention module, and the softmax after it."""

    def __init__(self, names: dict[torch.nn.Module, str]) -> None:
        super().__init__()
        self.names = names
        self.stack: list[torch.nn.Module] = []
        self.inputs: dict[torch.nn.Module, tuple] = {}
        self.caught: dict[str, Caught] = {}
        self.normed: dict[torch.nn.Module, list[str]] = {}
        self.natural: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # id of a stand-in ▸ (it, what it stands for)
        self.raw: dict[torch.nn.Module, tuple] = {}  # the inputs before a norm inside the module
        self.turned: set[torch.nn.Module] = set()  # modules that rotated in the run at hand
        self.still = False
        self.interface = 0
        self.generator = torch.Generator().manual_seed(7)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.stack and func is torch.nn.functional.normalize:
            self.normed.setdefault(self.stack[-1], []).append("normalize")
            return args[0]
        if self.stack and not self.interface:
            if func is torch.nn.functional.scaled_dot_product_attention:
                q, k = args[0], args[1]
                scale = kwargs.get("scale")
                self.catch(self.stack[-1], q, k, q.shape[-1] ** -0.5 if scale is None else scale)
            elif func in PRODUCTS:
                pair = args[1:] if "baddbmm" in func.__name__ else args
                first, second = (kwargs["batch1"], kwargs["batch2"]) if "batch1" in kwargs else pair[:2]
                if first.ndim >= 3 and second.ndim >= 3 and first.ndim == second.ndim:
                    self.catch(self.stack[-1], first, second.transpose(-1, -2), None)
            elif func is torch.einsum and len(args) >= 2:
                self.einsum(args[0], args[1:] if not isinstance(args[1], list | tuple) else args[1])
            elif func in (torch.softmax, torch.nn.functional.softmax, torch.Tensor.softmax, torch.logsumexp):
                self.softmax(args[0] if args else kwargs["input"])
        return func(*args, **kwargs)

    def norm_input(self, given: torch.Tensor, norm: Callable[[torch.Tensor], torch.Tensor]) -> bool:
        """Note that a norm inside a module is handed its whole input, which is the same as a norm in front of it."""
        module = self.stack[-1]
        x, y, natural, natural_y = self.inputs.get(module, (None,) * 4)
        if self.interface or (given is not x and given is not y):
            return False
        raw, raw_y = self.raw.setdefault(module, (natural, natural_y))
        seen = natural is not raw
        if given is x and not seen:
            natural = norm(raw)
        if given is y:
            natural_y = norm(raw_y)
        self.inputs[module] = (x, y, natural, natural_y)
        return True

    def opaque(self, change: int) -> None:
        """Look away while a part runs whose products are no attention of this module."""
        self.interface += change

    def einsum(self, equation: str, operands) -> None:
        """Catch the products of XLNet ("ibnd,jbnd->bnij") and of the convolutional families."""
        equation = equation.replace(" ", "")
        left, _, out = equation.partition("->")
        terms = left.split(",")
        if len(terms) != 2 or len(out) < 3:
            return
        one, two = terms
        summed = [c for c in one if c in two and c not in out]
        batch = [c for c in one if c in two and c in out]
        free_one = [c for c in one if c not in two]
        free_two = [c for c in two if c not in one]
        if len(summed) != 1 or len(free_one) != 1 or len(free_two) != 1 or not batch:
            return
        ordered = [c for c in out if c in batch]
        if len(ordered) not in (1, 2):
            return
        q = torch.einsum(f"{one}->{''.join(ordered)}{free_one[0]}{summed[0]}", operands[0])
        k = torch.einsum(f"{two}->{''.join(ordered)}{free_two[0]}{summed[0]}", operands[1])
        self.catch(self.stack[-1], q, k, None)

    def catch(self, module, q, k, factor, causal=None) -> None:
        owner = next((m for m in reversed(self.stack) if m in self.inputs), None)
        name = self.names.get(module)
        if owner is None or name is None or name in self.caught:
            return
        x, y, natural, natural_y = self.inputs[owner]
        if shape_up(k, y) is None:  # the second argument was something else, and keys come from the first
            y, natural_y = x, natural
        if (
            shape_up(k, y) is None and k.ndim == 4 and factor is not None
        ):  # keys made of other states follow the module's own
            k = k[:, :, : y.shape[-2]]
        made = shape_up(q, x), shape_up(k, y)
        if made[0] is None or made[1] is None or made[0].shape[-1] != made[1].shape[-1]:
            return
        self.caught[name] = Caught(
            name,
            flat(x),
            flat(y),
            made[0],
            made[1],
            factor,
            flat(natural),
            flat(natural_y),
            normed=list(self.normed.get(owner, [])),
            causal=getattr(module, "is_causal", None) if causal is None else causal,
            softcap=stated(module, "attn_logit_softcapping", "conf_attention_logit_cap", "attention_logit_cap"),
            clamp=stated(module, "clip_qkv"),
            turned=owner in self.turned,
        )
        if factor is None:
            with torch._C.DisableTorchFunction():
                batch = (
                    q.shape[0]
                    if q.ndim > 3
                    else max(1, made[0].shape[0] * made[0].shape[1] // (q.shape[0] and made[0].shape[1] * q.shape[1]))
                )
                dots = q.detach().double() @ k.detach().double().transpose(-1, -2)
                self.caught[name].dots = dots.reshape(batch, made[0].shape[1], *dots.shape[-2:])

    def softmax(self, scores) -> None:
        held = self.caught.get(self.names.get(self.stack[-1]))
        if held is not None and held.dots is not None and held.slopes is None and scores.numel() == held.dots.numel():
            scores = scores.detach().double().reshape(held.dots.shape)
            held.slopes = slopes(held.dots, scores)


def stated(module: torch.nn.Module, *keys: str) -> float | None:
    """Return a number that the module holds, or else its config or the part of that on attention, under any name."""
    config = getattr(module, "config", None)
    held = (module, config, getattr(config, "attn_config", None))
    return next((value for part in held for key in keys if (value := getattr(part, key, None)) is not None), None)


def slopes(dots: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Return (heads,): the factor of q'k in the scores, whatever is added that is the same in every sequence."""
    seen = torch.isfinite(scores) & (scores > -1e4)
    scores = torch.where(seen, scores, 0.0)
    dots = torch.where(seen, dots, 0.0)
    a, b = dots - dots.mean(0), scores - scores.mean(0)
    return (a * b).sum((0, 2, 3)) / (a * a).sum((0, 2, 3))


def flat(x: torch.Tensor) -> torch.Tensor:
    return x.detach().reshape(-1, x.shape[-1]).double()


def shape_up(q: torch.Tensor, x: torch.Tensor) -> torch.Tensor | None:
    """Return (samples, heads, d_q) from (batch, heads, tokens, d_q) or (batch * heads, tokens, d_q)."""
    batch, tokens = int(np.prod(x.shape[:-2])), x.shape[-2]
    q = q.detach()
    if q.ndim == 3 and x.ndim == 2 and q.shape[1] == tokens:
        q = q[None]
    if q.ndim == 5:  # (batch, heads, windows, tokens, d_q) and the like: fold the ones
        ones = [i for i, n in enumerate(q.shape[:-1]) if n == 1]
        if not ones:
            return None
        q = q.squeeze(ones[0])
    if q.ndim == 4 and q.shape[0] == batch and q.shape[2] == tokens:
        return q.transpose(1, 2).reshape(batch * tokens, q.shape[1], -1).double().clone()
    if q.ndim == 4 and q.shape[0] * q.shape[2] == batch * tokens:
        return q.transpose(1, 2).reshape(batch * tokens, q.shape[1], -1).double().clone()
    if q.ndim == 3 and q.shape[1] == 1 and q.shape[0] % (batch * tokens) == 0:
        return q.reshape(batch * tokens, -1, q.shape[-1]).double().clone()
    if q.ndim == 3 and q.shape[1] == tokens and q.shape[0] % batch == 0:
        return (
            q.reshape(batch, -1, tokens, q.shape[-1])
            .transpose(1, 2)
            .reshape(batch * tokens, -1, q.shape[-1])
            .double()
            .clone()
        )
    return shape_up(q, x.flatten(1, 2)) if x.ndim == 4 else None


@contextmanager
def watching(
    model: torch.nn.Module, attention: re.Pattern[str] = ATTENTION, *, still: bool = False, normed: bool = False
) -> Iterator[Watch]:
    """Run the model inside this, then read ``watch.caught``.

    Args:
        model: any model.
        attention: what the classes of attention modules are called.
        still: replace every rotation by the identity.
        normed: leave the norms inside attention modules on; q and k are then no linear maps of the input.
    """
    names = {module: name for name, module in model.named_modules()}
    alike = {
        module for module in names if attention.search(type(module).__name__) and not NORM.search(type(module).__name__)
    }
    leaves = {
        module for module in alike if not any(child in alike for child in module.modules() if child is not module)
    }
    watch = Watch(names)
    watch.still = still
    with ExitStack() as stack:
        for module in names:
            if module in leaves:
                stack.callback(
                    module.register_forward_pre_hook(lambda m, a, k: enter(watch, m, a, k), with_kwargs=True).remove
                )
                stack.callback(
                    module.register_forward_hook(lambda m, a, o: watch.stack.pop() and None, always_call=True).remove
                )
            elif NORM.search(type(module).__name__):
                if not normed:
                    stack.callback(neutral(module, watch))
            elif type(module).__name__.endswith("Indexer"):  # an attention of its own that chooses what the other sees
                stack.callback(module.register_forward_pre_hook(lambda *_: watch.opaque(1)).remove)
                stack.callback(module.register_forward_hook(lambda *_: watch.opaque(-1)).remove)
            if hasattr(module, "cogview_attention"):
                stack.callback(before_shift(module, watch))
            if hasattr(module, "_sliding_chunks_query_key_matmul"):
                stack.callback(in_windows(module, watch))
            if hasattr(sys.modules[type(module).__module__], "_split_into_blocks") and module in leaves:
                stack.callback(before_blocks(sys.modules[type(module).__module__], watch))
            if hasattr(module, "values_vision_proj"):
                stack.callback(both_ways(module, watch))
            if hasattr(module, "compute_local_attention_representations"):
                stack.callback(in_blocks(module, watch))
        for home in {sys.modules[type(module).__module__] for module in leaves}:
            stack.callback(before_rotation(home, watch))
        stack.enter_context(through_interface(watch))
        stack.enter_context(through_torch())
        stack.enter_context(watch)
        yield watch


def before_shift(module: torch.nn.Module, watch: Watch) -> Callable[[], None]:
    """Show LayoutLMv3's scores before each row is shifted by its maximum."""
    plain = module.cogview_attention

    def shifted(scores, *args):
        watch.softmax(scores)
        return plain(scores, *args)

    module.cogview_attention = shifted
    return lambda: delattr(module, "cogview_attention")


def in_windows(module: torch.nn.Module, watch: Watch) -> Callable[[], None]:
    """Catch Longformer's product of queries and keys before it is cut into overlapping windows."""
    plain = module._sliding_chunks_query_key_matmul

    def product(query, key, window):
        watch.catch(module, query.transpose(1, 2), key.transpose(1, 2), 1.0)
        watch.opaque(1)
        try:
            return plain(query, key, window)
        finally:
            watch.opaque(-1)

    module._sliding_chunks_query_key_matmul = product
    return lambda: delattr(module, "_sliding_chunks_query_key_matmul")


def before_rotation(home: ModuleType, watch: Watch) -> Callable[[], None]:
    """Note which attention modules call one of a file's functions that rotate."""
    plain = {name: found for name, found in vars(home).items() if ROTATION.search(name) and callable(found)}

    def noted(rotate: Callable[..., object], *args, **kwargs):
        watch.turned.update(watch.stack[-1:])
        return rotate(*args, **kwargs)

    vars(home).update({name: partial(noted, found) for name, found in plain.items()})
    return lambda: vars(home).update(plain)


def before_blocks(home: ModuleType, watch: Watch) -> Callable[[], None]:
    """Catch the queries and keys of LongT5, which its attention cuts into blocks one after the other."""
    plain = home._split_into_blocks
    if isinstance(plain, partial):  # once for all modules
        return lambda: None

    def split(held: dict[torch.nn.Module, list[torch.Tensor]], states, *args, **kwargs):
        if watch.stack:  # else it is the mask's turn
            mine = held.setdefault(watch.stack[-1], [])
            mine.append(states)
            if len(mine) == 2:
                watch.catch(watch.stack[-1], *(side.transpose(1, 2) for side in mine), 1.0)
        return plain(states, *args, **kwargs)

    home._split_into_blocks = partial(split, {})
    return lambda: setattr(home, "_split_into_blocks", plain)


def in_blocks(module: torch.nn.Module, watch: Watch) -> Callable[[], None]:
    """Catch the queries and keys of PEGASUS-X before they are cut into blocks and joined with global tokens."""
    with_all, with_block = (
        module.compute_global_attention_representations,
        module.compute_local_attention_representations,
    )

    def unseen(method, *args, **kwargs):
        watch.opaque(1)
        try:
            return method(*args, **kwargs)
        finally:
            watch.opaque(-1)

    def local(*args, **kwargs):
        watch.catch(module, kwargs["local_q"], kwargs["local_k"], 1.0)
        return unseen(with_block, *args, **kwargs)

    module.compute_global_attention_representations = partial(unseen, with_all)
    module.compute_local_attention_representations = local

    def undo() -> None:
        del module.compute_global_attention_representations, module.compute_local_attention_representations

    return undo


def both_ways(module: torch.nn.Module, watch: Watch) -> Callable[[], None]:
    """Catch the queries and keys of Grounding DINO's fusion: image and text, whose logits serve both ways."""
    plain, held = module._reshape, []

    def reshape(tensor, *sizes):
        held.append(plain(tensor, *sizes))
        if len(held) == 2:
            watch.catch(module, *held, 1.0)
        return held[-1]

    module._reshape = reshape
    return lambda: delattr(module, "_reshape")


def neutral(module: torch.nn.Module, watch: Watch) -> Callable[[], None]:
    """Switch a norm off while an attention module is running."""
    plain = module.forward

    def forward(*args, **kwargs):
        if not watch.stack:
            return plain(*args, **kwargs)
        given = args[0] if args else next(iter(kwargs.values()))
        if not watch.norm_input(given, plain):
            watch.normed.setdefault(watch.stack[-1], []).append(watch.names[module])
        return given

    module.forward = forward
    return lambda: delattr(module, "forward")


ROLES = (
    "hidden_states",
    "token_hidden_states",
    "x",
    "query",
    "query_states",
    "hidden_state",
    "inputs",
    "input",
    "h",
    "embeddings",
    "src",
    "queries",
    "latents",
    "vision_features",
)
PLACES = ("position_embeddings", "pos_embed", "query_pos", "key_pos", "object_queries", "sine_embed")
OTHER = (
    "key_value_states",
    "encoder_hidden_states",
    "key",
    "value",
    "context",
    "cross_attention_states",
    "kv",
    "keys",
    "text_features",
)


def enter(watch: Watch, module, args, kwargs):
    """Put random tensors in place of a module's inputs; equal inputs stay equal."""
    watch.stack.append(module)
    fresh: dict[int, torch.Tensor] = {}
    order: list[torch.Tensor] = []

    def swap(value):
        if (
            not isinstance(value, torch.Tensor)
            or not value.is_floating_point()
            or value.ndim < 2
            or (value.shape[-1] < 2 and (value.ndim < 3 or value.shape[1] < 8))
        ):
            return value
        if id(value) not in fresh:
            fresh[id(value)] = torch.randn(value.shape, generator=watch.generator, dtype=torch.float64).to(value.dtype)
            order.append(value)
        return fresh[id(value)]

    with torch._C.DisableTorchFunction():
        width = next(
            (
                a.shape[-1]
                for a in (*args, *kwargs.values())
                if isinstance(a, torch.Tensor) and a.is_floating_point() and a.ndim >= 2
            ),
            None,
        )
        if width is None:
            return args, kwargs
        new_args = list(args)
        if args:
            new_args[0] = swap(args[0])
            for i in range(1, len(args)):
                is_tensor = isinstance(args[i], torch.Tensor)
                if (
                    is_tensor
                    and args[i].ndim == args[0].ndim == 3
                    and (id(args[i]) in fresh or args[i].shape[-1] == width or args[i].shape[0] == args[0].shape[0])
                ):
                    new_args[i] = swap(args[i])
        new_kwargs = {}
        for key, value in kwargs.items():
            new_kwargs[key] = swap(value) if key in ROLES + OTHER else value
        for key, value in kwargs.items():  # what detectors add to the input of q and k, and not to that of v
            if key.endswith(PLACES) and isinstance(value, torch.Tensor) and not value.is_complex():
                new_kwargs[key] = torch.zeros_like(value)
        if watch.still and isinstance(kwargs.get("position_embeddings"), tuple):
            cos, sin = kwargs["position_embeddings"]
            new_kwargs["position_embeddings"] = (torch.ones_like(cos), torch.zeros_like(sin))
    if order:
        x = fresh[id(order[0])]
        if x.ndim == 4 and x.shape[2:] == (1, 1):  # (batch, d, 1, 1), as convolutions have it
            order[0], x = order[0].flatten(2), x.flatten(2)
            fresh[id(order[0])] = x
        if x.ndim == 3 and x.shape[-1] == 1:  # (batch, d, tokens), as SqueezeBERT's convolutions have it
            order[0] = order[0].transpose(1, 2)
            x = fresh[id(order[0])] = x.transpose(1, 2)
        other = next(
            (kwargs[key] for key in OTHER if isinstance(kwargs.get(key), torch.Tensor) and kwargs[key].ndim >= 3), None
        )
        if other is None and len(order) > 1:
            other = order[1]
        y = x if other is None else fresh[id(other)]
        for original in order:
            watch.natural[id(fresh[id(original)])] = (
                fresh[id(original)],
                watch.natural.get(id(original), (None, original))[1],
            )
        watch.inputs[module] = (x, y, watch.natural[id(x)][1], watch.natural[id(y)][1])
        watch.normed[module] = []
        watch.turned.discard(module)
        watch.raw.pop(module, None)
    return tuple(new_args), new_kwargs


@contextmanager
def through_interface(watch: Watch) -> Iterator[None]:
    """Catch the calls that go through transformers' table of attention functions."""
    try:
        from transformers.modeling_utils import AttentionInterface
    except ImportError:
        yield
        return
    plain = AttentionInterface.get_interface

    def get_interface(self, *args, **kwargs):
        found = plain(self, *args, **kwargs)

        def call(module, query, key, *rest, **options):
            scaling = options.get("scaling")
            if scaling is None:
                scaling = query.shape[-1] ** -0.5
            watch.catch(
                module,
                query,
                key,
                float(scaling) if not isinstance(scaling, torch.Tensor) or scaling.numel() == 1 else None,
                options.get("is_causal"),
            )
            watch.interface += 1
            try:
                return found(module, query, key, *rest, **options)
            finally:
                watch.interface -= 1

        return call

    AttentionInterface.get_interface = get_interface
    try:
        yield
    finally:
        AttentionInterface.get_interface = plain


@contextmanager
def through_torch() -> Iterator[None]:
    """Let torch.nn.MultiheadAttention show the products inside it instead of being one opaque call."""
    functional, fast = torch.nn.functional, torch.backends.mha.get_fastpath_enabled()
    plain = functional.has_torch_function
    torch.backends.mha.set_fastpath_enabled(value=False)
    functional.has_torch_function = lambda *_: False
    try:
        yield
    finally:
        functional.has_torch_function = plain
        torch.backends.mha.set_fastpath_enabled(value=fast)


@dataclass(frozen=True)
class Map:
    """The affine maps of one module: q = wq x + bq, k = wk y + bk, and the factor on q'k; NaN where no softmax ran."""

    path: str
    wq: np.ndarray  # (heads, d_q, d + 1), the last column the bias
    wk: np.ndarray
    factor: np.ndarray  # (heads,)
    natural: np.ndarray
    natural_y: np.ndarray
    normed: tuple[str, ...]
    causal: bool | None = None
    softcap: float | None = None
    clamp: float | None = None
    turned: bool = False


def regress(caught: Caught, *, every: int = 1, first: int = 0) -> Map:
    """Return the maps; AssertionError where q or k is no affine function of the input.

    Args:
        caught: an attention call.
        every, first: use every so many tokens only, from this one on: the first of each sequence, which rotary position
            leaves alone, or a later one.
    """
    if every > 1:
        for name in ("x", "y", "q", "k", "natural", "natural_y"):
            setattr(caught, name, getattr(caught, name)[first::every])
    wq, natural_y = affine(caught.x, caught.q), caught.natural_y
    try:
        assert len(caught.y) == len(caught.k)
        wk = affine(caught.y, caught.k)
    except AssertionError:  # the second argument was something else, and keys come from the first after all
        wk, natural_y = affine(caught.x, caught.k), caught.natural
    if caught.factor is None:
        factor = np.full(wq.shape[0], np.nan) if caught.slopes is None else caught.slopes.numpy()
    else:
        factor = np.full(wq.shape[0], caught.factor)
    return Map(
        caught.path,
        wq,
        wk,
        factor,
        caught.natural.numpy(),
        natural_y.numpy(),
        tuple(caught.normed),
        caught.causal,
        caught.softcap,
        caught.clamp,
        caught.turned,
    )


def affine(x: torch.Tensor, q: torch.Tensor) -> np.ndarray:
    samples, heads, d_q = q.shape
    one = torch.cat([x, torch.ones(samples, 1, dtype=x.dtype)], 1).numpy()
    target = q.reshape(samples, -1).numpy()
    assert samples >= one.shape[1], f"{samples} samples for {one.shape[1]} unknowns"
    found, _, rank, _ = np.linalg.lstsq(one, target, rcond=None)
    assert rank == one.shape[1], "inputs do not span the space"
    left = np.abs(one @ found - target).max() / (np.abs(target).max() + 1e-30)
    assert left < 1e-5, f"not an affine map of the input (residual {left:.1e})"
    return found.T.reshape(heads, d_q, -1)
