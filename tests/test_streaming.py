"""Where the work is done: the device that is chosen, and modules measured in batches on one."""

import numpy as np
import pytest
import torch
from elsewhere import Device
from test_cache import save

from qkspec import spectrum_torch, streaming
from qkspec.analysis import Settings
from qkspec.checkpoints.sequence import find_runs
from qkspec.engine import Engine
from qkspec.errors import UsageError
from qkspec.measuring import chosen, measure_modules, plan_for
from qkspec.streaming import WORK_WORTH_A_GPU, choose_device

MUCH = 2 * WORK_WORTH_A_GPU


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A machine on which there is, or may be, a GPU."""

    def made(*, there=True, room=1 << 30):
        def has():
            if room is None:
                raise torch.AcceleratorError("CUDA-capable device(s) is/are busy or unavailable")
            return room

        monkeypatch.setattr(streaming, "GPU_PLACES", (tmp_path,))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
        monkeypatch.setattr(spectrum_torch, "room", lambda device: has())

    return made


def test_auto_takes_a_gpu_that_is_there_and_worth_it(gpu):
    gpu()
    assert choose_device("auto", MUCH, 1 << 20) == "cuda"
    assert choose_device("auto", WORK_WORTH_A_GPU / 2, 1 << 20) == "cpu"
    assert choose_device("cpu", MUCH) == "cpu"


@pytest.mark.parametrize("lacking", [{"there": False}, {"room": 1 << 10}, {"room": None}])
def test_auto_never_takes_a_gpu_that_is_missing_full_or_busy(gpu, lacking):
    gpu(**lacking)
    assert choose_device("auto", MUCH, 1 << 20) == "cpu"


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_was_asked_for_is_there_or_an_error(gpu, device, monkeypatch):
    gpu(there=False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match=f"--device {device}: torch finds no such device here"):
        choose_device(device, 0)


def planned(tmp_path, settings, **where):
    save(tmp_path / "step-0", 0)
    (source,) = find_runs([str(tmp_path / "step-0")])[0].sources
    stream = streaming._Stream([("", source)], Settings(**where))
    stream._choose(streaming._plan("", source, source.fingerprint(), settings))
    streaming._release()
    return stream


def test_with_a_gpu_there_is_one_process(gpu, tmp_path):
    """A copy of a process that has looked for a GPU cannot use it."""
    gpu()
    assert planned(tmp_path, Settings(), device="cuda", workers=4)._workers == 1
    assert planned(tmp_path, Settings(), device="cpu", workers=4)._workers == 4


def test_the_gpus_of_a_cluster_need_none_here(gpu, tmp_path):
    gpu(there=False)
    assert planned(tmp_path, Settings(), device="cuda", engine=Engine.RAY)._device == "cuda"


def test_modules_on_a_device_are_those_of_the_cpu(tmp_path):
    """By the road of ``--device cuda``, which takes them in batches and finishes them in threads."""
    save(tmp_path / "step-0", 0)
    (source,) = find_runs([str(tmp_path / "step-0")])[0].sources
    checkpoint = source.open()
    found = plan_for(checkpoint, Settings())
    here = measure_modules(checkpoint, found, chosen(found, Settings()), Settings())
    with Device(float64=True) as device:
        there = measure_modules(checkpoint, found, chosen(found, Settings()), Settings(device="meta"))
    checkpoint.store.close()
    assert "bmm" in device.calls
    for one, other in zip(there, here, strict=True):
        assert one.module == other.module
        np.testing.assert_allclose(one.sigma, other.sigma, rtol=1e-10)
        for name, values in other.values.items():
            np.testing.assert_allclose(one.values[name], values, rtol=1e-6, atol=1e-12, err_msg=name)
