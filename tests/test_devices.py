"""Device and precision choice, on pretended hardware."""

import platform
import subprocess
import sys

import pytest
import torch

from avfewshot.errors import UsageError
from avfewshot.inference.devices import PRECISIONS, cpu_has_bf16, one_thread, resolve_device, resolve_precision


@pytest.fixture
def hardware(monkeypatch):
    """Pretend: GPUs by compute capability, an Apple GPU, capabilities of the CPU."""

    def pretend(cuda=(), mps=False, cpu=()):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cuda))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: cuda[device.index])
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(cpu, True), raising=False)

    return pretend


def test_auto_takes_a_gpu_where_there_is_one(hardware):
    hardware()
    assert resolve_device("auto") == torch.device("cpu")
    hardware(mps=True)
    assert resolve_device("auto") == torch.device("mps")
    hardware(cuda=[(8, 0), (9, 0)])
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda:0")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert resolve_device("cpu") == torch.device("cpu")


def test_a_device_that_is_not_there_is_refused_with_those_that_are(hardware, monkeypatch):
    hardware(cuda=[(8, 0), (9, 0)])
    for name in ("cuda:2", "mps", "tpu", "cuda:x"):
        with pytest.raises(UsageError, match=r"This machine has: cpu, cuda:0, cuda:1\."):
            resolve_device(name)
    hardware()
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    with pytest.raises(UsageError, match="built without CUDA"):
        resolve_device("cuda")


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [((), "fp32"), (("avx512_bf16",), "bf16"), (("amx_bf16",), "bf16"), (("bf16",), "bf16"), (("avx512_f",), "fp32")],
)
def test_auto_precision_on_a_cpu_is_bf16_only_where_it_has_instructions_for_it(hardware, cpu, expected):
    hardware(cpu=cpu)
    assert cpu_has_bf16() == (expected == "bf16")
    assert resolve_precision("auto", torch.device("cpu")) == expected


def test_precisions_by_name_and_by_the_generation_of_a_gpu(hardware):
    for capability, expected in (((6, 1), "fp32"), ((7, 5), "fp16"), ((8, 6), "bf16")):
        hardware(cuda=[(9, 0), capability])
        assert resolve_precision("auto", torch.device("cuda:1")) == expected
    hardware(mps=True)
    assert resolve_precision("auto", torch.device("mps")) == "fp32"
    for name in PRECISIONS:
        assert resolve_precision(name, torch.device("cpu")) == name
    with pytest.raises(UsageError, match="auto, fp32, bf16, fp16"):
        resolve_precision("fp8", torch.device("cpu"))


def test_small_matrices_are_computed_on_one_thread_and_all_others_on_as_many_as_before():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    seen = []

    @one_thread()
    def fail():
        seen.append(torch.get_num_threads())
        raise ValueError("inside")

    try:
        with pytest.raises(ValueError, match="inside"):
            fail()
        assert [*seen, torch.get_num_threads()] == [1, 3]
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_what_a_step_frees_is_kept_for_the_next_and_its_pages_are_not_mapped_anew():
    code = """
import resource, torch
from avfewshot.inference.devices import keep_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
mapped = faults()
keep_memory()
print(mapped, min(faults() for _ in range(9)))
"""
    mapped, kept = map(int, subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert kept < mapped / 4
