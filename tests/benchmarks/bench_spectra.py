# ruff: noqa: E402 - threads are set before NumPy is imported, and paths before qkspec is
"""What spectra cost: qkspec against naive SVDs, TransformerLens, WeightWatcher and the floor, all measured in one run.

    python tests/benchmarks/bench_spectra.py [--repeats 5] [--quick] [--out TABLE.md]

Times are CPU seconds, medians of the repeats; ratios are against the first row of the same work, so that a busy or slow
machine cancels out. Other tools' rows are empty, with the reason, where they are not installed: ``pip install
transformer-lens weightwatcher`` (in an environment of their own if their requirements conflict). The rows of a GPU are
made only where torch finds a CUDA device.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before NumPy is imported

import argparse
import contextlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

import shapes

from qkspec import metrics
from qkspec.qk import Norm, QKLayer, Rotary


@dataclass
class Row:
    """One line of a table."""

    work: str
    who: str
    seconds: float
    note: str = ""


def layer_of(heads, kv_heads, d_q, d, seed=0):
    """A module of Gaussian weights with gains, as a bfloat16 Llama or a float32 GPT-2 would have them."""
    rng = np.random.default_rng(seed)
    q, k = (0.02 * rng.standard_normal((n, d_q, d), dtype=np.float32) for n in (heads, kv_heads))
    norm = Norm("rms", np.exp(0.1 * rng.standard_normal(d, dtype=np.float32)))
    return QKLayer("h", 0, "self", q, k, d_q**-0.5, "bfloat16", q_input=norm, k_input=norm,
                   rotary=Rotary(d_q), causal=True, context=8192)  # fmt: skip


def cpu(function, repeats):
    """Median CPU seconds of a call, the first not counted."""
    function()
    return median(function, repeats, time.process_time)


def median(function, repeats, clock):
    times = []
    for _ in range(repeats):
        start = clock()
        function()
        times.append(clock() - start)
    return statistics.median(times)


# A child's peak memory counts what its parent held when it was started, so a parent that holds nothing starts it.
LAUNCH = """
import os, resource, subprocess, sys, time
start = time.perf_counter()
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(status, usage.ru_utime + usage.ru_stime, time.perf_counter() - start, usage.ru_maxrss / 1024)
"""


def process(command, repeats):
    """Median CPU and wall seconds and peak memory (MB) of a program with its children; the peak is one process's."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent)}
    runs = []
    for _ in range(repeats):
        launch = [sys.executable, "-S", "-c", LAUNCH, *command]
        done = subprocess.run(launch, capture_output=True, text=True, env=environment, check=True)
        status, *figures = map(float, done.stdout.split())
        if status:
            sys.exit(f"{command} ended with status {status}: {done.stderr}")
        runs.append(figures)
    cpus, walls, peaks = zip(*runs, strict=True)
    return statistics.median(cpus), statistics.median(walls), max(peaks)


def naive(layer):
    """What a notebook does: form each W_q'W_k and take its singular values."""
    group = layer.heads // layer.kv_heads
    for h in range(layer.heads):
        np.linalg.svd(layer.q[h].T @ layer.k[h // group], compute_uv=False)


def transformer_lens(layer):
    """A function that runs TransformerLens' FactoredMatrix.svd on every head, or the reason why there is none."""
    try:
        import torch
        from transformer_lens import FactoredMatrix
    except Exception as error:  # noqa: BLE001 - whatever keeps another tool from importing is the note of its row
        return None, f"not installed ({type(error).__name__})"
    torch.set_num_threads(1)
    q = torch.from_numpy(layer.q).mT.contiguous()
    k = torch.from_numpy(layer.k).repeat_interleave(layer.heads // layer.kv_heads, 0)
    return (lambda: FactoredMatrix(q, k).svd()), ""


def weightwatcher(layer):
    """A function that runs WeightWatcher's analyze on every W_q'W_k, or the reason why there is none."""
    try:
        import torch
        import weightwatcher as ww
    except Exception as error:  # noqa: BLE001
        return None, f"not installed ({type(error).__name__})"
    torch.set_num_threads(1)
    group = layer.heads // layer.kv_heads
    model = torch.nn.Module()
    for h in range(layer.heads):
        linear = torch.nn.Linear(layer.d_model, layer.d_model, bias=False)
        linear.weight.data = torch.from_numpy(layer.q[h].T @ layer.k[h // group])
        model.add_module(f"head{h}", linear)
    return (lambda: ww.WeightWatcher(model=model).analyze(mp_fit=False, plot=False)), ""


def floor(layer):
    """Seconds that the arithmetic of the singular values alone takes at this machine's measured float64 GEMM rate."""
    a = np.random.default_rng(0).standard_normal((1024, 1024))
    rate = 2 * 1024**3 / cpu(lambda: a @ a, 5)
    d_q, d = layer.d_q, layer.d_model
    flops = (layer.heads + layer.kv_heads) * d_q * d_q * d + layer.heads * (2 * d_q**3 + 4 * d_q**3)
    return flops / rate


def layer_rows(name, layer, repeats, *, slow):
    """One module in memory: computing only."""
    rows = [
        Row(
            name,
            "qkspec, all that --format json tells",
            cpu(lambda: metrics.measure(layer, eigenvalues=False), repeats),
        ),
        Row(name, "qkspec, the eigenvalues of M too, as for heads.csv", cpu(lambda: metrics.measure(layer), repeats)),
    ]
    rows.append(Row(name, "floor: σ's FLOPs at the GEMM rate", floor(layer)))
    for who, made in (
        ("TransformerLens FactoredMatrix.svd", transformer_lens),
        ("WeightWatcher analyze", weightwatcher),
    ):
        if who.startswith("Weight") and not slow:
            continue
        function, why = made(layer)
        rows.append(Row(name, who, float("nan") if function is None else cpu(function, min(repeats, 3)), why))
    if slow:
        rows.append(Row(name, "naive svdvals(W_q'W_k)", cpu(lambda: naive(layer), min(repeats, 3))))
    return rows


def file_rows(folder, repeats, *, quick):
    """Whole processes on files: start, read, compute, print."""
    command = [sys.executable, "-m", "qkspec", "analyze", "--format", "json", "--no-cache"]
    small = shapes.gpt2_small(folder / "gpt2")
    seconds, _, peak = process([*command, str(small)], repeats)
    rows = [Row("GPT-2-small file, 144 heads", "qkspec analyze", seconds, f"{peak:.0f} MB")]
    if quick:
        return rows
    large = shapes.llama(folder / "llama")
    name = "Llama-3-8B-shaped file, 1024 heads"
    walls = []
    for workers in (1, 2):
        seconds, wall, peak = process([*command, str(large), "--workers", str(workers)], min(repeats, 3))
        walls.append(wall)
        who = f"qkspec analyze, {workers} worker{'s' * (workers > 1)}"
        rows.append(Row(name, who, seconds, f"{wall:.1f} s wall, {peak:.0f} MB"))
    rows[-1].note += f", {walls[0] / walls[1]:.2f} × faster by the clock"
    reading, flops = cpu(lambda: read_all(large), repeats), 32 * floor(layer_of(32, 8, 128, 4096))
    note = f"{reading:.2f} reading, {flops:.2f} FLOPs"
    rows.append(Row(name, "floor: the larger of reading Q and K and σ's FLOPs", max(reading, flops), note))
    return rows


def read_all(folder):
    """Read every byte that holds a number, which in these files are those of q, k and the norms, in order."""
    buffer = bytearray(1 << 22)
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            end, at = path.stat().st_size, 0
            while at < end:
                try:
                    at = os.lseek(file.fileno(), at, os.SEEK_DATA)
                except OSError:
                    break
                stop = os.lseek(file.fileno(), at, os.SEEK_HOLE)
                file.seek(at)
                while at < stop:
                    at += file.readinto(memoryview(buffer)[: min(len(buffer), stop - at)])


def cache_rows(folder, repeats, checkpoints=100):
    """A folder of checkpoints, analysed twice."""
    source = shapes.gpt2_small(folder / "gpt2")
    run = folder / "run"
    for step in range(checkpoints):
        target = run / f"step-{step:06d}"
        target.mkdir(parents=True)
        for path in source.iterdir():
            subprocess.run(["cp", "--sparse=always", str(path), str(target)], check=True)
    command = [sys.executable, "-m", "qkspec", "analyze", str(run), "--format", "json", "--workers", "1"]
    command += ["--cache", str(folder / "cache")]
    first, _, peak = process(command, 1)
    again, _, peak_again = process(command, repeats)
    name = f"{checkpoints} GPT-2-small checkpoints"
    return [Row(name, "first run", first, f"{peak:.0f} MB"), Row(name, "second run, unchanged", again,
            f"{first / again:.0f} × faster, {peak_again:.0f} MB")]  # fmt: skip


def gpu_rows(repeats):
    """The products of Llama-3-70B's layers on a CUDA device against the FLOPs at that card's measured rate."""
    import torch

    if not torch.cuda.is_available():
        return []
    from qkspec import spectrum_torch
    from qkspec.spectrum import Weights

    layers = [layer_of(64, 8, 128, 8192, seed) for seed in range(4)]
    weights = [Weights.of(*metrics.folding(layer)) for layer in layers]
    a = torch.randn(8192, 8192, dtype=torch.float64, device="cuda")

    def multiply():
        a @ a
        torch.cuda.synchronize()

    multiply()
    rate = 2 * 8192**3 / median(multiply, repeats, time.perf_counter)
    flops = 80 * 2 * 128 * 128 * 8192 * (2 * (64 + 8) + 64)
    name = "Llama-3-70B shape, 80 layers, " + torch.cuda.get_device_name()
    list(spectrum_torch.spectra_of(weights, device="cuda"))
    whole = 20 * median(lambda: list(spectrum_torch.spectra_of(weights, device="cuda")), repeats, time.perf_counter)
    device = torch.device("cuda")
    one = lambda: list(spectrum_torch._products(weights, device, single=False))  # noqa: E731
    products = 20 * median(one, repeats, time.perf_counter)
    return [
        Row(name, "qkspec, every spectrum, wall", whole, "80 layers as 20 batches of 4"),
        Row(name, "qkspec, products on the card with transfers, wall", products),
        Row(name, "floor: the products' FLOPs at the float64 GEMM rate", flops / rate, f"{rate / 1e12:.1f} TFLOP/s"),
    ]


def table(rows):
    """The rows as Markdown, each with its ratio to the first of its work."""
    base, lines = {}, ["| work | who | seconds | ratio | |", "|---|---|---|---|---|"]
    for row in rows:
        first = base.setdefault(row.work, row.seconds)
        known = np.isfinite(row.seconds)
        cells = (f"{row.seconds:.3g}", f"{row.seconds / first:.2f}") if known else ("–", "–")
        lines.append(f"| {row.work} | {row.who} | {cells[0]} | {cells[1]} | {row.note} |")
    return "\n".join(lines)


def machine():
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    return f"{os.cpu_count()} × {name}, Python {platform.python_version()}, NumPy {np.__version__}, one BLAS thread"


def _cpuinfo():
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a minute: no large files, no slow rivals")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    rows = layer_rows("one GPT-2-small layer", layer_of(12, 12, 64, 768), chosen.repeats, slow=not chosen.quick)
    rows += layer_rows("one Llama-3-8B layer", layer_of(32, 8, 128, 4096), chosen.repeats, slow=False)
    with tempfile.TemporaryDirectory() as folder:
        rows += file_rows(Path(folder), chosen.repeats, quick=chosen.quick)
        if not chosen.quick:
            rows += cache_rows(Path(folder), chosen.repeats)
    with contextlib.suppress(ImportError):
        rows += gpu_rows(chosen.repeats)
    text = f"{machine()}\n\n{table(rows)}\n"
    print(text)
    if chosen.out:
        chosen.out.write_text(text)


if __name__ == "__main__":
    main()
