"""Names without what wrappers add to them."""

import pytest

from qkspec.checkpoints.renamed import strip_wrappers


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
        (["_forward_module.a.b"], ["a.b"]),
        (["submodule.a"], ["submodule.a"]),
        ([], []),
    ],
)
def test_wrappers_in_names(names: list[str], stripped: list[str]) -> None:
    assert list(strip_wrappers(dict.fromkeys(names))) == stripped
