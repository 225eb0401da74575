"""gs:// against an emulator of Google Cloud Storage: a run in a bucket, byte ranges, and refusals in one sentence.

It needs ``gcsfs`` and ``gcp-storage-emulator``, and is skipped where they are not installed.
"""

import json
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from qkspec.checkpoints import remote
from qkspec.checkpoints.sequence import find_runs
from qkspec.errors import CheckpointError
from qkspec.layouts.find import attention_layers

WIDTH = 64
HEAD = 1 << 14  # bytes fetched with a file's first ones
rng = np.random.default_rng(0)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Callable[[str, bytes], None], list[tuple[str, int]]]]:
    """Yield what puts an object into gs://b, and the list of (range, bytes) that were sent from then on."""
    gcsfs = pytest.importorskip("gcsfs")
    server = pytest.importorskip("gcp_storage_emulator.server")
    sent: list[tuple[str, int]] = []
    close = server.Response.close

    def counted(self: Any) -> None:
        sent.append((self._handler.headers.get("Range", ""), len(self._content)))
        close(self)

    monkeypatch.setattr(server.Response, "close", counted)
    emulator = server.create_server("127.0.0.1", 0, in_memory=True, default_bucket="b")
    emulator.start()
    address = f"http://127.0.0.1:{emulator._api._httpd.server_port}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    remote._filesystem.cache_clear()
    gcsfs.GCSFileSystem.clear_instance_cache()

    def put(name: str, data: bytes) -> None:
        where = f"{address}/upload/storage/v1/b/b/o?uploadType=media&name={urllib.parse.quote(name, safe='')}"
        headers = {"Content-Type": "application/octet-stream"}
        with urllib.request.urlopen(urllib.request.Request(where, data, headers, method="POST")) as answer:
            answer.read()
        sent.clear()

    yield put, sent
    remote._filesystem.cache_clear()
    gcsfs.GCSFileSystem.clear_instance_cache()
    emulator.stop()


def model() -> dict[str, np.ndarray]:
    return {
        f"model.layers.{layer}.{name}.weight": rng.standard_normal((rows, WIDTH)).astype(np.float32)
        for layer in range(2)
        for name, rows in (("self_attn.q_proj", WIDTH), ("self_attn.k_proj", WIDTH), ("mlp.up_proj", 40 * WIDTH))
    }


def test_a_run_in_a_bucket(bucket: Any) -> None:
    put, sent = bucket
    weights = {step: model() for step in (100, 200)}
    for step, tensors in weights.items():
        names = list(tensors)
        parts = {f"model-0000{n}-of-00002.safetensors": names[3 * n - 3 : 3 * n] for n in (1, 2)}
        for file, inside in parts.items():
            put(f"run/checkpoint-{step}/{file}", save({name: tensors[name] for name in inside}))
        index = json.dumps({"weight_map": {name: file for file, inside in parts.items() for name in inside}})
        config = json.dumps({"model_type": "llama", "num_attention_heads": 4})
        put(f"run/checkpoint-{step}/model.safetensors.index.json", index.encode())
        put(f"run/checkpoint-{step}/config.json", config.encode())
        beside = len(index) + len(config)
    (run,) = find_runs(["gs://b/run"])
    assert [source.step for source in run.sources] == [100, 200]
    for source in run.sources:
        sent.clear()
        checkpoint = source.open()
        layers = list(attention_layers(checkpoint))
        for layer in layers:
            stored = weights[source.step or 0]
            name = f"model.layers.{layer.layer}.self_attn."
            np.testing.assert_array_equal(layer.q.reshape(WIDTH, WIDTH), stored[f"{name}q_proj.weight"])
            np.testing.assert_array_equal(layer.k.reshape(WIDTH, WIDTH), stored[f"{name}k_proj.weight"])
        wanted = 4 * WIDTH * WIDTH * 4 + 2 * HEAD
        assert checkpoint.store.bytes_read == wanted
        assert sum(size for asked, size in sent if asked) == wanted + beside
        assert sum(size for _, size in sent) < wanted + beside + 10_000  # what folders hold
        assert source.size() > 5 * wanted
        assert source.fingerprint() != run.sources[0].fingerprint() or source is run.sources[0]


def test_what_is_not_there(bucket: Any) -> None:
    for url in ("gs://b/nothing", "gs://nobody/run"):
        with pytest.raises(CheckpointError, match="does not exist"):
            find_runs([url])


class RefusedError(Exception):
    """As gcsfs puts it: the status in ``code``."""

    code = 401


@pytest.mark.parametrize(
    "error", [RefusedError("Anonymous caller"), OSError("Forbidden: https://storage.googleapis.com/b")]
)
def test_a_refusal_is_final(error: Exception) -> None:
    asked = []

    def action() -> None:
        asked.append(1)
        raise error

    with pytest.raises(CheckpointError, match="FSSPEC_GS_TOKEN=anon"):
        remote._attempt("gs://b/x", action)
    assert len(asked) == 1
