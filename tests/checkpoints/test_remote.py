"""URLs on loopback: a real S3-compatible server, a web server with ranges; bytes are counted on the wire."""

import contextlib
import http.server
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bucket
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qkspec.checkpoints import remote
from qkspec.checkpoints.remote import MAX_PAGE
from qkspec.checkpoints.sequence import find_runs, open_checkpoint
from qkspec.errors import CheckpointError, InputError, UsageError

pytest.importorskip("fsspec")
Q, BIG = torch.randn(64, 32), torch.randn(1500, 1000)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    remote._filesystem.cache_clear()
    monkeypatch.setattr(remote, "_PAUSES", (0.0, 0.0, 0.0))
    yield
    remote._filesystem.cache_clear()


@dataclass
class Web:
    """A web server over a folder: it honours ranges, counts bytes, and fails on demand."""

    root: Path
    sent: int = 0
    ranges: bool = True
    failures: int = 0
    requests: list[str] = field(default_factory=list)
    pages: dict[str, str] = field(default_factory=dict)
    url: str = ""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    pytest.importorskip("aiohttp")
    state = Web(tmp_path)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            state.requests.append(f"{self.command} {self.path}")
            if state.failures:
                state.failures -= 1
                self.send_error(503)
                return
            path = state.root / state.pages.get(self.path, self.path.lstrip("/"))
            if not path.is_file():
                self.send_error(404)
                return
            data, status = path.read_bytes(), 200
            size = len(data)
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if match and state.ranges:
                data, status = data[int(match[1]) : int(match[2]) + 1], 206
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if state.ranges:
                self.send_header("Accept-Ranges", "bytes")
            if status == 206:
                self.send_header("Content-Range", f"bytes {match[1]}-{match[2]}/{size}")  # type: ignore[index]
            self.end_headers()
            if body:
                state.sent += len(data)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a reader may have had enough
                    self.wfile.write(data)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()


def model(folder: Path) -> int:
    folder.mkdir(parents=True)
    save_file({"big": BIG, "h.0.q": Q}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"n_head": 2}')
    return (folder / "model.safetensors").stat().st_size


def test_a_web_file_travels_in_ranges(web: Web) -> None:
    size = model(web.root / "m")
    checkpoint = open_checkpoint(f"{web.url}/m/model.safetensors")
    np.testing.assert_array_equal(checkpoint.store.read("h.0.q", slice(8, 40)), Q[8:40].numpy())
    assert (checkpoint.name, checkpoint.config) == ("m", {"n_head": 2})
    print(web.requests)
    assert web.sent <= 3 * (1 << 14) + 32 * 32 * 4
    assert checkpoint.store.bytes_read is not None
    assert checkpoint.store.bytes_read <= (1 << 14) + 32 * 32 * 4
    assert size > 6_000_000


def test_a_web_folder_and_a_torch_file(web: Web) -> None:
    model(web.root / "step-5")
    assert open_checkpoint(f"{web.url}/step-5/").step == 5
    torch.save({"h.0.q": Q, "big": BIG}, web.root / "ckpt_7.pt")
    before = web.sent
    checkpoint = open_checkpoint(f"{web.url}/ckpt_7.pt")
    np.testing.assert_array_equal(checkpoint.store.read("h.0.q"), Q.numpy())
    assert checkpoint.step == 7
    assert web.sent - before < 200_000
    (source,) = find_runs([f"{web.url}/step-5"])[0].sources
    assert source.fingerprint() == source.fingerprint()
    assert source.digest().startswith("blake2b-stamps:")


def test_a_web_servers_index_page_lists_its_checkpoints(web: Web) -> None:
    for step in (100, 20):
        model(web.root / f"run/step-{step}")
    far = "x" * MAX_PAGE + '<a href="step-7/">x</a>'  # beyond what is looked at
    links = ("../", "step-100/", "step-20/", "notes/", "step-3/?sort=1", "https://elsewhere.example/step-9/", "a.css")
    (web.root / "index.html").write_text("".join(f'<a href="{link}">x</a>' for link in links) + far)
    web.pages["/run/"] = "index.html"
    (run,) = find_runs([f"{web.url}/run/"])
    assert [(source.name, source.step) for source in run.sources] == [("step-20", 20), ("step-100", 100)]
    np.testing.assert_array_equal(run.sources[0].open().store.read("h.0.q"), Q.numpy())
    asked = {request.split()[1] for request in web.requests}
    assert not any("notes" in path or "sort" in path for path in asked), "only what says a step is looked into"


def test_a_failing_server_is_tried_again_and_then_named(web: Web) -> None:
    model(web.root / "m")
    web.failures = 3
    store = open_checkpoint(f"{web.url}/m/model.safetensors").store
    store.read("h.0.q")
    web.failures = 10_000
    with pytest.raises(CheckpointError, match=r"127\.0\.0\.1.*try again"):
        store.read("big", slice(700, 701))
    web.failures = 0
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(f"{web.url}/none/model.safetensors")
    with pytest.raises(CheckpointError):
        open_checkpoint("http://127.0.0.1:9/model.safetensors")


def test_a_server_without_ranges_is_refused_by_name(web: Web) -> None:
    model(web.root / "m")
    web.ranges = False
    with pytest.raises(CheckpointError, match="byte ranges"):
        open_checkpoint(f"{web.url}/m/model.safetensors").store.read("h.0.q")


def test_a_missing_backend_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"qkspec\[remote\]"):
        find_runs(["nosuchprotocol://bucket/x"])
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UsageError, match=r"qkspec\[remote\]"):
        find_runs(["s3://bucket/x"])


def test_revisions_are_of_repositories() -> None:
    with pytest.raises(Exception, match="hf://org/model"):
        find_runs(["s3://bucket/x"], revisions="step*")


def test_local_paths_import_no_network() -> None:
    program = (
        "import sys\nimport qkspec.checkpoints.sequence\n"
        "print([m for m in ('fsspec', 'aiohttp', 'torch', 'requests') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


def counting_proxy(target: int, counter: list[int]) -> socket.socket:
    """Pass connections on to a port and count the bytes that come back."""
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, sink: socket.socket, count: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                counter[0] += len(data) if count else 0
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            upstream = socket.create_connection(("127.0.0.1", target))
            for arguments in ((client, upstream, False), (upstream, client, True)):
                threading.Thread(target=pump, args=arguments, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return listener


@pytest.fixture(scope="module")
def s3() -> Iterator[Callable[[], int]]:
    """Start moto's S3 server behind a counting proxy, fill a bucket, and return how to read the counter."""
    counter = [0]
    with bucket.served() as (port, client), pytest.MonkeyPatch.context() as patch:
        listener = counting_proxy(port, counter)
        bucket.use(patch, listener.getsockname()[1])
        client.create_bucket(Bucket="bucket")

        def put(key: str, tensors: dict[str, torch.Tensor], folder: Path) -> None:
            save_file(tensors, folder / "file")
            client.put_object(Bucket="bucket", Key=key, Body=(folder / "file").read_bytes())

        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            for step in (100, 20):
                put(f"run/step-{step}/model.safetensors", {"big": BIG, "h.0.q": Q * step}, Path(folder))
                client.put_object(Bucket="bucket", Key=f"run/step-{step}/config.json", Body=b'{"n_head": 2}')
            places = {}
            for part in range(4):
                name = f"model-{part + 1:05}-of-00004.safetensors"
                put(f"sharded/{name}", {f"big{part}": BIG, f"h.{part}.q": Q + part}, Path(folder))
                places |= {f"big{part}": name, f"h.{part}.q": name}
            client.put_object(
                Bucket="bucket",
                Key="sharded/model.safetensors.index.json",
                Body=json.dumps({"weight_map": places}).encode(),
            )
        yield lambda: counter[0]
        listener.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_run_in_a_bucket(s3: Callable[[], int]) -> None:
    before = s3()
    (run,) = find_runs(["s3://bucket/run"])
    assert [(s.name, s.step) for s in run.sources] == [("step-20", 20), ("step-100", 100)]
    for source in run.sources:
        checkpoint = source.open()
        assert checkpoint.config == {"n_head": 2}
        np.testing.assert_array_equal(checkpoint.store.read("h.0.q"), (Q * source.step).numpy())
        np.testing.assert_array_equal(checkpoint.store.read("h.0.q", slice(3, 9)), (Q * source.step)[3:9].numpy())
        assert source.fingerprint() == source.fingerprint()
    (both,) = find_runs(["s3://bucket/run/step-100", "s3://bucket/run/step-20"])
    assert (both.name, both.path, [s.step for s in both.sources]) == ("run", "s3://bucket/run", [20, 100])
    travelled = s3() - before
    print(f"{travelled} bytes travelled of {2 * BIG.nbytes}")
    assert travelled < 250_000


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_shards_in_a_bucket_move_only_headers_and_q(s3: Callable[[], int]) -> None:
    before = s3()
    checkpoint = open_checkpoint("s3://bucket/sharded")
    for part in range(4):
        np.testing.assert_array_equal(checkpoint.store.read(f"h.{part}.q"), (Q + part).numpy())
    wanted = 4 * (Q.nbytes + (1 << 14))
    assert checkpoint.store.bytes_read is not None
    assert checkpoint.store.bytes_read <= wanted
    assert s3() - before < wanted + 60_000
    with pytest.raises(CheckpointError, match="does not exist"):
        find_runs(["s3://bucket/nothing"])
    with pytest.raises(CheckpointError, match="s3://nobucket"):
        find_runs(["s3://nobucket/run"])


def tokenizer_of(revision: str) -> bytes:
    """A tokenizer of words whose numbers differ from revision to revision."""
    words = {word: 7 * len(revision) + i for i, word in enumerate(("[UNK]", "a", "head", "turned"))}
    vocabulary = {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"}
    rest = {"pre_tokenizer": {"type": "Whitespace"}, "added_tokens": []}
    return json.dumps({"version": "1.0", "model": vocabulary, **rest}).encode()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Serve a repository with three revisions by the hub's own API, and count the bytes of files that are sent."""
    constants = pytest.importorskip("huggingface_hub.constants")
    revisions = ("main", "step64", "step1000")
    files: dict[str, bytes] = {"config.json": b'{"model_type": "gpt_neox"}'}
    for index, revision in enumerate(revisions):
        save_file({"big": BIG, "h.0.q": Q * index}, tmp_path / revision)
        files[f"{revision}/model.safetensors"] = (tmp_path / revision).read_bytes()
        files[f"{revision}/tokenizer.json"] = tokenizer_of(revision)
    counter: dict[str, Any] = {"sent": 0, "files": []}

    def listing(revision: str) -> list[dict[str, object]]:
        sizes = {
            "config.json": len(files["config.json"]),
            **{name: len(files[f"{revision}/{name}"]) for name in ("model.safetensors", "tokenizer.json")},
        }
        return [{"type": "file", "path": name, "size": size, "oid": revision} for name, size in sizes.items()]

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def reply(self, data: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
            revision = self.path.rpartition("/")[2]
            found = [item for item in listing(revision) if str(item["path"]) in asked]
            self.reply(json.dumps(found).encode(), Content_Type="application/json")

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                if parts[2:4] != ["org", "model"]:
                    self.reply(b"{}", 404, X_Error_Code="RepoNotFound")
                elif parts[4:] == ["refs"]:
                    branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": name} for name in revisions]
                    self.reply(
                        json.dumps({"branches": branches, "tags": [], "converts": []}).encode(),
                        Content_Type="application/json",
                    )
                elif parts[4:5] == ["tree"]:
                    self.reply(json.dumps(listing(parts[5])).encode(), Content_Type="application/json")
                elif len(parts) > 5 and parts[5] not in revisions:
                    self.reply(b"{}", 404, X_Error_Code="RevisionNotFound")
                else:
                    self.reply(
                        json.dumps({"id": "org/model", "sha": "x", "siblings": []}).encode(),
                        Content_Type="application/json",
                    )
                return
            name = parts[4] if parts[4] == "config.json" else f"{parts[3]}/{parts[4]}"
            counter["files"].append(f"{parts[3]}/{parts[4]}")
            if name not in files:
                self.reply(b"{}", 404, X_Error_Code="EntryNotFound")
                return
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            data = files[name][int(match[1]) : int(match[2]) + 1] if match else files[name]
            counter["sent"] += len(data)
            self.reply(data, 206 if match else 200)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield counter
    server.shutdown()
    server.server_close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_revisions_of_a_hub_repository(hub: dict[str, Any]) -> None:
    (run,) = find_runs(["hf://org/model"], revisions="step*")
    assert [source.step for source in run.sources] == [64, 1000]
    for index, source in enumerate(run.sources, 1):
        checkpoint = source.open()
        assert checkpoint.config == {"model_type": "gpt_neox"}
        np.testing.assert_array_equal(checkpoint.store.read("h.0.q", slice(5, 50)), (Q * index)[5:50].numpy())
    print(f"{hub['sent']} bytes travelled of {2 * BIG.nbytes}")
    assert hub["sent"] < 2 * ((1 << 14) + Q.nbytes + 100)
    one = open_checkpoint("hf://org/model@step1000")
    assert (one.step, one.name) == (1000, "model@step1000")
    with pytest.raises(CheckpointError, match="step9"):
        open_checkpoint("hf://org/model@step9")
    with pytest.raises(CheckpointError, match="org/none"):
        find_runs(["hf://org/none"])
    with pytest.raises(InputError, match="no revision matches"):
        find_runs(["hf://org/model"], revisions="epoch*")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_text_is_read_by_the_tokenizer_of_the_revision_that_was_given(
    hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the tokenizer's own files travels, of that revision alone, and no other host is asked."""
    pytest.importorskip("transformers")
    from qkspec.tokens import beside

    asked: list[str] = []
    connect = socket.create_connection
    monkeypatch.setattr(
        socket,
        "create_connection",
        lambda address, *rest, **more: asked.append(address[0]) or connect(address, *rest, **more),
    )
    for revision in ("step64", "main"):
        checkpoint = open_checkpoint("hf://org/model" if revision == "main" else f"hf://org/model@{revision}")
        hub["files"].clear()
        found = beside(checkpoint.path)
        first = 7 * len(revision)
        assert found("a head turned")["input_ids"] == [first + 1, first + 2, first + 3]
        assert set(hub["files"]) == {f"{revision}/tokenizer.json"}
    assert set(asked) <= {"127.0.0.1"}
