"""Plain data out of pickles, and names without wrappers."""

from typing import Any

import pytest

from qkspec.checkpoints.pickles import Instance, Symbol
from qkspec.checkpoints.wrappers import find_step, is_decoy, plain, strip_wrappers


def test_plain_data() -> None:
    namespace = Instance(
        Symbol("argparse", "Namespace"), (), {"lr": 1e-3, "dtype": Symbol("torch", "float32"), 5: "dropped"}
    )
    assert plain(
        {"args": namespace, "path": Instance(Symbol("pathlib", "PosixPath"), ("a", "b")), "odd": object(), "n": None}
    ) == {
        "args": {"lr": 1e-3, "dtype": "torch.float32"},
        "path": ["a", "b"],
        "odd": None,
        "n": None,
    }


def test_shared_and_endless_values_end() -> None:
    loop: dict[str, Any] = {}
    loop["self"] = loop
    assert isinstance(plain(loop), dict)
    bomb: list[Any] = []
    for _ in range(60):
        bomb = [bomb, bomb]
    assert isinstance(plain(bomb), list)


@pytest.mark.parametrize(
    ("names", "stripped"),
    [
        (["module.a", "module.b"], ["a", "b"]),
        (["module.module.a"], ["a"]),
        (["module.a", "b"], ["module.a", "b"]),
        (["_orig_mod.a.b"], ["a.b"]),
        (["model._orig_mod.layers.0._fsdp_wrapped_module.w"], ["model.layers.0.w"]),
        (["module._orig_mod.a", "module._orig_mod.b"], ["a", "b"]),
        (["a", "_orig_mod.a"], ["a", "_orig_mod.a"]),
        (["submodule.a"], ["submodule.a"]),
        ([], []),
    ],
)
def test_wrappers_in_names(names: list[str], stripped: list[str]) -> None:
    assert list(strip_wrappers(dict.fromkeys(names))) == stripped


def test_steps_are_whole_numbers() -> None:
    assert find_step({"iter_num": 5}) == 5
    assert find_step({"global_step": True, "step": 7}) == 7
    assert find_step({"global_step": -1, "step": 2.0, "iter": "3"}) is None
    assert find_step({"step": 1 << 60}) is None


def test_decoys() -> None:
    assert all(
        map(
            is_decoy,
            (
                "optimizer",
                "optimizer_states",
                "ema",
                "model_ema",
                "state_dict_ema",
                "lr_scheduler",
                "rng_state",
                "grad_scaler",
            ),
        )
    )
    assert not any(map(is_decoy, ("model", "schema", "language_model", "encoder", "remap")))
