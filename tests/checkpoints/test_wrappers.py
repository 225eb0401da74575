"""Plain data out of pickles."""

from typing import Any

from qkspec.checkpoints.pickles import Instance, Symbol
from qkspec.checkpoints.wrappers import is_decoy, plain


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
