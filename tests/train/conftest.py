from pathlib import Path

import pytest

from qkspec.train.config import TrainConfig

TEXT = "".join(f"def f{i}(x):\n    return x * {i} + {i * i}\n\n" for i in range(400))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def tiny(corpus: Path) -> TrainConfig:
    """A run of a second: 12 updates of a model of two thousand weights."""
    return TrainConfig(
        layers=2, heads=2, width=16, context=8, batch=4, steps=12, eval_batches=2, data=str(corpus), threads=1
    )
