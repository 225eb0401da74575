"""Fixtures of the whole suite."""

import importlib.util
import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from qkspec.engine import one_blas_thread

one_blas_thread()  # before NumPy is imported: two workers on two cores, and small matrices, want one thread each

_DECLARED: list[object] = []


class TorchvisionOperators(MetaPathFinder):
    """Let ``import torchvision`` succeed beside a torch that its compiled extension was not built for.

    Its wheel on PyPI is built against CUDA torch; beside CPU torch the extension does not load, and then torchvision
    fails on registering meta kernels for two operators that do not exist. timm and transformers import torchvision but
    never call those, so declaring their schemas (no implementation) is enough. Where the extension loads, nothing is.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        sys.meta_path.remove(self)
        import torch

        spec = importlib.util.find_spec("torchvision")
        if spec is not None and spec.submodule_search_locations and not _loads(spec.submodule_search_locations[0]):
            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _DECLARED.append(library)
        return None


def _loads(folder: str) -> bool:
    import torch

    extension = next(Path(folder).glob("_C*.so"), None)
    try:
        if extension is not None:
            torch.ops.load_library(extension)
    except OSError:
        return False
    return extension is not None


sys.meta_path.insert(0, TorchvisionOperators())


@pytest.fixture(scope="session")
def sample() -> Path:
    """A sound run of 13 checkpoints, written by ``qkspec train``."""
    return Path(__file__).parent.parent / "sample_ckpts" / "adamw2"


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep results of earlier analyses out of the tests, and the tests' out of the user's cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
