"""Run a checkpoint's own model on a text, or on random tokens, and read the attention maps off what its modules see.

What the weights alone predict rests on isotropic tokens; the maps of a run do not. The price is memory: the whole
model is held in float32, and while it loads its weights are there twice (GPT-2 small: 1.4 GB). Of the hidden states
nothing is kept: each module's maps are made and read when its input passes by. What a family adds to its logits beside
q'k (ALiBi, biases by relative position) is left out, as in the predicted maps, and a remark of the layout says so.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from qkspec import tokens
from qkspec.activations import watching
from qkspec.callbacks import live
from qkspec.checkpoints.store import Checkpoint
from qkspec.errors import InputError, QkspecError
from qkspec.given import of_inputs
from qkspec.layouts.find import Module, plan
from qkspec.layouts.load import read
from qkspec.metrics import on_activations
from qkspec.qk import QKLayer

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]
Ids = NDArray[np.int64]

RANDOM = "random"
SEQUENCES, LENGTH = 8, 256  # rows of tokens, shorter in a shorter context; a map costs the cube of its row
_LEAST = 8  # tokens in a row
_SEED = 0  # of random tokens: the same for every checkpoint
_BYTES = 256  # a vocabulary of this size without a tokenizer is one of bytes
_TEXT_BYTES = 1 << 16  # read of a text: no tokenizer makes fewer than one token of 32 bytes
_DEPTH = re.compile(r"(layers?|blocks|depth)$")  # keys of a config that count layers
_TRAINER, _MAX_JSON = "trainer_state.json", 1 << 26
_TROUBLE = (
    ValueError, TypeError, RuntimeError, KeyError, IndexError, AttributeError, AssertionError, OSError, ImportError,
    ArithmeticError, MemoryError,
)  # fmt: skip


T = TypeVar("T", F64, F32)
_Found = Mapping[tuple[str, int], list[Mapping[str, T]]]  # (block, layer) to what was found of each such module
_Last = tuple[str, _Found[T] | InputError]  # and the checkpoint that it was found of


@dataclass(frozen=True)
class _Running:
    """A model that can be run: ``config`` as of its config.json, ``inputs`` one forward pass each."""

    model: Any
    config: Mapping[str, Any]
    inputs: tuple[Mapping[str, Any], ...]


class TextRunner:
    """The ``Runner`` of ``Settings``: runs each checkpoint once, for all of its modules.

    Models of transformers are built from the checkpoint's config by the installed package, never by code that comes
    with the checkpoint, and those of ``qkspec train`` by this one. The weights come through qkspec's own reader.

    Args:
        text: a file of UTF-8 text, or "random" for random tokens (for images: noise).

    Raises:
        InputError: the file cannot be read, or is too short.
    """

    def __init__(self, text: str | Path) -> None:
        self._random = str(text) == RANDOM
        self.kind = "random" if self._random else "measured"
        self._text = b"" if self._random else _read(Path(text))
        self._columns: _Last[F64] = ("", {})
        self._maps: _Last[F32] = ("", {})

    def __call__(self, checkpoint: Checkpoint, layer: QKLayer) -> Mapping[str, F64]:
        """Return the columns of one module's maps, (heads,) each, the mean over the inputs.

        Raises:
            InputError: the checkpoint's model cannot be run, or its modules are not those of the checkpoint.
        """
        self._columns = _of(self._columns, checkpoint, self._measured)
        return _alone(self._columns[1], layer)

    def maps(self, checkpoint: Checkpoint, layer: QKLayer) -> F32:
        """Return one module's maps of the first input themselves, (heads, t, t).

        Raises:
            InputError: as above.
        """
        self._maps = _of(self._maps, checkpoint, self._drawn)
        return _alone(self._maps[1], layer)["map"]

    def _measured(self, checkpoint: Checkpoint) -> _Found[F64]:
        """Run a checkpoint on every input; return each module's columns, the mean over the inputs."""
        sums: dict[str, Mapping[str, F64]] = {}

        def seen(layer: QKLayer, x: F32, y: F32 | None) -> None:
            values = on_activations(layer, x, y, kind=self.kind)
            before = sums.get(layer.name)
            sums[layer.name] = values if before is None else {n: before[n] + values[n] for n in values}

        modules, runs = self._run(checkpoint, seen)
        return _by_place(
            modules, {name: {column: total / runs for column, total in values.items()} for name, values in sums.items()}
        )

    def _drawn(self, checkpoint: Checkpoint) -> _Found[F32]:
        """Run a checkpoint on its first input; return each module's maps of the first sequence."""
        found: dict[str, Mapping[str, F32]] = {}

        def seen(layer: QKLayer, x: F32, y: F32 | None) -> None:
            if layer.name not in found:
                found[layer.name] = {"map": of_inputs(layer, x[0], None if y is None else y[0])}

        return _by_place(self._run(checkpoint, seen, most=1)[0], found)

    def _run(
        self, checkpoint: Checkpoint, seen: Callable[[QKLayer, F32, F32 | None], None], *, most: int | None = None
    ) -> tuple[Mapping[str, Module], int]:
        """Run a checkpoint's model, telling ``seen`` what each attention module is given; return modules and runs."""
        import torch

        try:
            running = self._own(checkpoint) or self._of_transformers(checkpoint)
            alive = live.checkpoint_of(running.model, running.config, checkpoint.step or 0)
            found = plan(alive)
            modules = {module.name: module for module in found.modules}
            inputs = running.inputs[:most]

            def passing(name: str, x: F32, y: F32 | None) -> None:
                seen(read(alive, found, modules[name]), x, y)

            with torch.no_grad(), watching(running.model, list(modules), passing):
                for batch in inputs:
                    running.model(**batch)
        except InputError:
            raise
        except QkspecError as error:
            raise _cannot(str(error)) from error
        except _TROUBLE as error:
            raise _cannot(f"{type(error).__name__}: {error}") from error
        return modules, len(inputs)

    def _own(self, checkpoint: Checkpoint) -> _Running | None:
        """Build a model that ``qkspec train`` saved; None for any other."""
        import torch

        from qkspec.train.config import from_dict
        from qkspec.train.models import registry

        settings = _train_config(Path(checkpoint.path))
        if settings is None:
            return None
        config = from_dict(settings)
        module = registry.module(config.model)
        with torch.device("meta"):
            _check_shapes(checkpoint, module.build(config), {"lm_head.weight"} if config.tied else set())
        model = module.build(config).eval()
        model.load_state_dict(_state(checkpoint), strict=False)
        described = module.config_json(config)
        if registry.kind(config.model).data == "images":
            shape = (config.channels, config.image_size, config.image_size)
            return _Running(model, described, (self._noise("images", shape),))
        return _Running(model, described, self._batches("ids", config.vocab, config.context, None))

    def _of_transformers(self, checkpoint: Checkpoint) -> _Running:
        """Build a model of Hugging Face transformers from a checkpoint's config and weights."""
        import torch

        try:
            import transformers
            from transformers.models.auto.configuration_auto import CONFIG_MAPPING
        except ImportError as error:
            raise _cannot("it needs transformers: pip install 'qkspec[transformers]'") from error

        kind = checkpoint.config.get("model_type")
        if not isinstance(kind, str):
            raise _cannot("its config names no model_type of transformers")
        if kind not in CONFIG_MAPPING:
            raise _cannot(f"transformers {transformers.__version__} has no model_type {kind!r}")
        if "quantization_config" in checkpoint.config:
            raise _cannot("its weights are quantised")
        _check_depth(checkpoint.config, len(checkpoint.store.names()))
        with _silent(transformers):
            config = CONFIG_MAPPING[kind].from_dict(dict(checkpoint.config))
            model, found = _class(transformers, config).from_pretrained(
                None,
                config=config,
                state_dict=_state(checkpoint),
                dtype=torch.float32,
                output_loading_info=True,
                attn_implementation="eager",  # never a kernel that the config names: it would be fetched and loaded
            )
        _check_whole(sorted(found["missing_keys"]))
        model.eval()
        if model.main_input_name == "pixel_values":
            own = getattr(config, "vision_config", config)
            size = own.image_size if isinstance(own.image_size, list | tuple) else (own.image_size,) * 2
            return _Running(model, config.to_dict(), (self._noise("pixel_values", (own.num_channels, *size)),))
        text = config.get_text_config()
        context = getattr(text, "max_position_embeddings", None) or LENGTH
        of_bytes = self._random or text.vocab_size == _BYTES
        tokenizer = None if of_bytes else tokens.beside(checkpoint.path)
        batches = self._batches("input_ids", text.vocab_size, context, tokenizer)
        if config.is_encoder_decoder:
            batches = tuple({**batch, "decoder_input_ids": batch["input_ids"]} for batch in batches)
        return _Running(model, config.to_dict(), batches)

    def _batches(self, name: str, vocabulary: int, context: int, tokenizer: Any) -> tuple[Mapping[str, Any], ...]:
        import torch

        rows = self._rows(vocabulary, min(context, LENGTH), tokenizer)
        return tuple({name: torch.from_numpy(row)[None]} for row in rows)

    def _rows(self, vocabulary: int, length: int, tokenizer: Any) -> Iterator[Ids]:
        """Yield rows of token ids: random, of a tokenizer, or bytes."""
        if length < 2:
            raise _cannot("its context is one token, which attends to itself")
        if self._random:
            yield from np.random.default_rng(_SEED).integers(0, vocabulary, (SEQUENCES, length))
            return
        if tokenizer is None and vocabulary != _BYTES:
            raise _cannot(f"its tokenizer is not beside its weights; put it there, or give --text {RANDOM}")
        text = self._text.decode("utf-8", "replace")
        bare = list(self._text) if tokenizer is None else tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = np.array(bare, dtype=np.int64)
        if len(ids) < _LEAST or ids.max() >= vocabulary:
            raise _cannot("the text makes too few tokens" if len(ids) < _LEAST else "the tokenizer is another model's")
        before, after = ([], []) if tokenizer is None else _frame(tokenizer)
        length = max(length - len(before) - len(after), _LEAST)
        for row in range(max(min(len(ids) // length, SEQUENCES), 1)):
            yield np.concatenate([before, ids[row * length : (row + 1) * length], after]).astype(np.int64)

    def _noise(self, name: str, shape: tuple[int, ...]) -> Mapping[str, Any]:
        import torch

        if not self._random:
            raise _cannot(f"it reads images, not text; give --text {RANDOM}, or --activations")
        noise = np.random.default_rng(_SEED).standard_normal((SEQUENCES, *shape), dtype=np.float32)
        return {name: torch.from_numpy(noise)}


def _of(last: _Last[T], checkpoint: Checkpoint, run: Callable[[Checkpoint], _Found[T]]) -> _Last[T]:
    """Return what a run of a checkpoint found, or why it cannot be run; ``last`` if it is of the same checkpoint."""
    key = f"{checkpoint.path}\0{checkpoint.name}"
    if last[0] == key:
        return last
    try:
        return key, run(checkpoint)
    except InputError as error:
        return key, error


def _alone(found: _Found[T] | InputError, layer: QKLayer) -> Mapping[str, T]:
    """Return what was found of one module of a checkpoint."""
    if isinstance(found, InputError):
        raise found
    values = found.get((layer.block, layer.layer), [])
    if len(values) != 1 or len(next(iter(values[0].values()))) != layer.heads:
        raise _cannot(f"nothing passed through its attention module {layer.name} alone")
    return values[0]


def _by_place(modules: Mapping[str, Module], found: Mapping[str, Mapping[str, T]]) -> _Found[T]:
    """Return what was found of modules by (block, layer): their names are the model's, not the checkpoint's."""
    out: dict[tuple[str, int], list[Mapping[str, T]]] = {}
    for name, values in found.items():
        out.setdefault((modules[name].block, modules[name].layer), []).append(values)
    return out


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(_TEXT_BYTES)
    except OSError as error:
        raise InputError(f"{path}: the text cannot be read ({error.strerror}); give a file, or {RANDOM}") from error
    if len(text) < _LEAST:
        raise InputError(f"{path}: {len(text)} bytes of text are too few to run a model on; give a page or more")
    return text


def _train_config(path: Path) -> dict[str, Any] | None:
    """Return the settings that ``qkspec train`` put beside a checkpoint, None where there are none."""
    file = (path if path.is_dir() else path.parent) / _TRAINER
    try:
        if file.stat().st_size > _MAX_JSON:
            return None
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    settings = found.get("train_config") if isinstance(found, dict) else None
    return settings if isinstance(settings, dict) else None


def _state(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a checkpoint's floating-point tensors for torch."""
    import torch

    store = checkpoint.store
    names = [name for name in store.names() if "float" in store.dtype(name)]
    return {name: torch.from_numpy(np.array(store.read(name), dtype=np.float32)) for name in names}


def _class(transformers: Any, config: Any) -> Any:
    """Return the class that a config names, if transformers has such a model, else the bare model of its type."""
    named = getattr(transformers, str((config.architectures or [""])[0]), None)
    whole = isinstance(named, type) and issubclass(named, transformers.PreTrainedModel)
    return named if whole else transformers.MODEL_MAPPING[type(config)]


def _frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the special tokens that belong before and after every text, such as BERT's [CLS] and [SEP].

    Heads that park their attention on them have nowhere to go in a row without.
    """
    whole, bare = (list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (True, False))
    for start in range(len(whole) - len(bare) + 1 if bare else 0):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return [], []


class _silent:  # noqa: N801 - it reads as a statement
    """Keep transformers from drawing bars and from warning while it loads."""

    def __init__(self, transformers: Any) -> None:
        self._logging = transformers.utils.logging

    def __enter__(self) -> None:
        self._level = self._logging.get_verbosity()
        self._logging.set_verbosity_error()
        self._logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        self._logging.set_verbosity(self._level)
        self._logging.enable_progress_bar()


def _check_depth(config: Mapping[str, Any], tensors: int) -> None:
    """Refuse a config that claims more layers than there are tensors, before anything of that size is built."""
    for key, value in config.items():
        if isinstance(value, dict):
            _check_depth(value, tensors)
        elif _DEPTH.search(str(key)) and type(value) is int and value > tensors:
            raise _cannot(f"its config says {key} = {value}, and there are {tensors} tensors")


def _check_shapes(checkpoint: Checkpoint, model: Any, spared: set[str]) -> None:
    """Refuse weights that lack some of a model's or have other shapes, before anything of its size is in memory.

    Args:
        checkpoint: the weights.
        model: on the meta device.
        spared: names that need not be there.
    """
    store, wanted = checkpoint.store, model.state_dict()
    _check_whole(sorted(set(wanted) - set(store.names()) - spared))
    for name in sorted(wanted.keys() - spared):
        shape, found = tuple(wanted[name].shape), store.shape(name)
        if shape != found:
            raise _cannot(f"its settings make {name} of shape {shape}, and it is {found}")


def _check_whole(missing: list[str]) -> None:
    if missing:
        raise _cannot(f"{len(missing)} of its weights are not in the checkpoint, {missing[0]} first")


def _cannot(reason: str) -> InputError:
    short = " ".join(reason.split())[:200]
    return InputError(f"its model cannot be run ({short}): judged by what the weights alone predict")
