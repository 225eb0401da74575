"""The torch back end on the CPU device, held to the same oracles as the other, in float64 and in the float32 scheme."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from elsewhere import Device
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import exact_values, planted, product_values

from qkspec import energy, spectrum, spectrum_torch
from qkspec.errors import QkspecError
from qkspec.spectrum import Weights

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
    pytest.param("mps", marks=pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no MPS device")),
]


def draw(seed, heads, kv_heads, d_q, d, d_k=None):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((heads, d_q, d)), rng.standard_normal((kv_heads, d_q, d_k or d))


def sec(sigma, s):
    return np.sum(sigma[:, :s] ** 2, axis=1) / np.sum(sigma**2, axis=1)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 12),
    st.integers(1, 12),
)
def test_equals_the_svd_of_the_product(seed, kv_heads, group, d_q, d, d_k):
    q, k = draw(seed, kv_heads * group, kv_heads, d_q, d, d_k)
    sigma = spectrum_torch.spectra(q, k, device="cpu").sigma
    np.testing.assert_allclose(sigma, product_values(q, k), rtol=1e-10, atol=1e-12 * sigma.max())


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("order", ["falling", "rising", "shuffled"])
@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_every_value_at_condition_1e13(device, single, order, mixed):
    if device == "mps" and not single:
        pytest.skip("MPS has no float64")
    rng = np.random.default_rng(5)
    sigma = np.logspace(0, -13, 16)
    given_order = {"falling": sigma, "rising": sigma[::-1], "shuffled": rng.permutation(sigma)}[order]
    q, k = planted(rng, given_order, 40, mixed=mixed)
    found = spectrum_torch.spectra(q[None], k[None], device=device, single=single).sigma[0]
    np.testing.assert_allclose(found, exact_values(q, k), rtol=1e-9)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["gaussian", "decaying", "collapsed"])
def test_the_float32_scheme_keeps_sigma1_and_sec(kind, device):
    rng = np.random.default_rng(3)
    q, k = draw(3, 4, 2, 32, 1024)
    if kind == "decaying":
        fall = np.logspace(0, -1.5, 32)[:, None]
        mix = np.linalg.qr(rng.standard_normal((32, 32)))[0]
        q, k = mix @ (fall * q), mix @ (fall * k)
    if kind == "collapsed":
        u, v = rng.standard_normal((2, 1024))
        a = rng.standard_normal(32)
        q, k = 1e-6 * q + np.outer(a, u), 1e-6 * k + np.outer(a, v)
    exact = spectrum.spectra(q, k).sigma
    found = spectrum_torch.spectra(q, k, device=device, single=True).sigma
    np.testing.assert_allclose(found[:, 0], exact[:, 0], rtol=1e-6)
    for s in (1, 2, 4, 8):
        np.testing.assert_allclose(sec(found, s), sec(exact, s), atol=1e-6)


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e150])
@pytest.mark.parametrize("single", [False, True])
def test_size_does_not_matter(scale, single):
    q, k = draw(0, 2, 1, 4, 30)
    one, other = (spectrum_torch.spectra(q * s, k, device="cpu", single=single).sigma for s in (1, scale))
    np.testing.assert_allclose(other / scale, one, rtol=1e-5 if single else 1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 2), st.integers(1, 3), st.integers(1, 6), st.integers(1, 9), st.booleans())
def test_agrees_with_numpy_on_everything(seed, kv_heads, group, d_q, d, gained):
    q, k = draw(seed, kv_heads * group, kv_heads, d_q, d)
    gains = tuple(np.exp(np.random.default_rng(seed).standard_normal((2, d)))) if gained else (None, None)
    ours, theirs = spectrum_torch.spectra(q, k, *gains, device="cpu"), spectrum.spectra(q, k, *gains)
    size = np.linalg.norm(q) * np.linalg.norm(k) * (np.max(gains[0]) * np.max(gains[1]) if gained else 1)
    for name in ("sigma1_q", "sigma1_k", "trace", "gained", "gained_trace"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-9, atol=1e-9 * size)


def test_modules_of_one_shape_are_one_batch_and_come_in_order():
    modules = [Weights.of(*draw(i, 2, 1, 4, 10 if i < 3 else 12)) for i in range(5)]
    found = list(spectrum_torch.spectra_of(modules, device="cpu"))
    for weights, spectra in zip(modules, found, strict=True):
        np.testing.assert_allclose(spectra.sigma, spectrum.singular_values(weights.q, weights.k), rtol=1e-10)


def test_eigenvalues_are_computed_only_where_they_are_wanted():
    q, k = draw(0, 4, 2, 6, 30)
    weights = Weights.of(q, k, np.full(30, 2.0), None)
    for single in (False, True):
        with_, without = (
            next(spectrum_torch.spectra_of([replace(weights, eigenvalues=wanted)], device="cpu", single=single))
            for wanted in (True, False)
        )
        assert np.isfinite(with_.eigenvalues).all()
        assert np.isnan(without.eigenvalues).all()
        for name in ("sigma", "trace", "gained", "gained_trace"):
            np.testing.assert_array_equal(getattr(with_, name), getattr(without, name))


def test_a_small_device_takes_fewer_modules_at_once(monkeypatch):
    weights = [Weights.of(*draw(seed, 2, 1, 4, 10)) for seed in range(5)]
    monkeypatch.setattr(spectrum_torch, "BATCH", 2 * 8 * (weights[0].q.size + weights[0].k.size))
    assert [len(batch) for batch in spectrum_torch._batches(weights, spectrum_torch.room("cpu"))] == [2, 2, 1]
    assert [len(batch) for batch in spectrum_torch._batches(weights, 1)] == [1] * 5


@pytest.mark.parametrize("single", [False, True])
def test_broken_and_dead_heads(single):
    q, k = draw(0, 4, 2, 3, 5)
    q[0], q[3, 0, 0] = 0, np.nan
    found = spectrum_torch.spectra(q, k, device="cpu", single=single)
    assert (found.sigma[0] == 0).all()
    assert np.isnan(found.sigma[3]).all()
    assert np.isfinite(found.sigma[1:3]).all()


def test_a_shape_of_real_size_in_float32():
    rng = np.random.default_rng(0)
    q, k = (0.02 * rng.standard_normal((n, 128, 2048), dtype=np.float32) for n in (4, 1))
    exact, found = spectrum.spectra(q, k).sigma, spectrum_torch.spectra(q, k, device="cpu", single=True).sigma
    assert np.abs(found[:, 0] / exact[:, 0] - 1).max() < 1e-7
    assert np.abs(energy.sec(found, 8) - energy.sec(exact, 8)).max() < 1e-7


@pytest.mark.parametrize("eigenvalues", [True, False])
@pytest.mark.parametrize("gains", ["none", "one", "both"])
@pytest.mark.parametrize("kind", ["float32", "float64", "tiny", "cross", "broken"])
@pytest.mark.parametrize("single", [False, True])
def test_nothing_meets_the_cpu_on_a_device(single, kind, gains, eigenvalues):
    """No device mixed, no number waited for but the products at the end, no float64 where there is none; same bits."""
    rng = np.random.default_rng(0)
    d_k = 30 if kind == "cross" else 300
    modules = []
    for _ in range(3):
        q, k = rng.standard_normal((4, 8, 300)), rng.standard_normal((2, 8, d_k))
        if kind == "broken":
            q[1, 0, 0] = np.nan
        q, k = (1e-30 * q, k) if kind == "tiny" else (q, k)
        gain_q, gain_k = (np.exp(rng.standard_normal(n)) for n in (300, d_k))
        weights = Weights.of(
            *((q, k) if kind == "float64" else (q.astype(np.float32), k.astype(np.float32))),
            None if gains == "none" else gain_q,
            gain_k if gains == "both" else None,
        )
        modules.append(replace(weights, eigenvalues=eigenvalues))
    with Device(float64=not single) as device:
        there = list(spectrum_torch.spectra_of(modules, device="meta", single=single))
    here = list(spectrum_torch.spectra_of(modules, device="cpu", single=single))
    for found, expected in zip(there, here, strict=True):
        for name in vars(expected):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    assert device.calls.count("bmm") > 0
    assert device.peak <= (spectrum_torch.ROOM - 1) * sum(8 * (w.q.size + w.k.size) for w in modules)


def test_the_program_around_does_not_lower_the_precision():
    """A trainer's autocast, and TF32 that it or a container allows."""
    q, k = (x.astype(np.float32) for x in draw(0, 2, 1, 8, 600))
    expected = spectrum_torch.spectra(q, k, device="cpu", single=True).sigma
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), spectrum_torch._as_written(torch.device("cpu")):
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = spectrum_torch.spectra(q, k, device="cpu", single=True).sigma
        assert torch.backends.cuda.matmul.fp32_precision == "tf32", "it is given back"
    finally:
        torch.set_float32_matmul_precision("highest")
    np.testing.assert_array_equal(found, expected)


def test_a_device_that_fails_is_told_in_a_sentence():
    with pytest.raises(QkspecError, match=r"the device cuda failed \(out of memory\); use --device cpu"):  # noqa: SIM117
        with spectrum_torch._failures_told("cuda"):
            raise torch.OutOfMemoryError("out of memory\nand a page of advice")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_told_in_a_sentence():
    with pytest.raises(QkspecError, match=r"the device cuda failed .*use --device cpu"):
        spectrum_torch.spectra(*draw(0, 1, 1, 2, 3), device="cuda")


def test_the_cpu_path_imports_no_torch():
    code = "import sys, qkspec.analysis, qkspec.spectrum; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
