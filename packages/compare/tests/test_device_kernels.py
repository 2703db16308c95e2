from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity

import layerstream_compare.worker.device_kernels as kernels_module
from layerstream_compare.worker.device_kernels import recorded_kernels, short_name

GEMV = "void kgemm_4bit_inference_naive<__half, 128, 16>(int, int, int, __half*, unsigned char*, float*)"
NAMES = [
    ("CUDA", GEMV),
    ("CUDA", GEMV),
    ("CUDA", "nvjet_hsh_64x8_64x16_1x2_h_bz_TNT"),
    (
        "CUDA",
        "void at::native::(anonymous namespace)::cunn_SoftMaxForward<4, float>(float*, float const*, int)",
    ),
    ("CUDA", "void at::native::elementwise_kernel<128, 4>(int)"),
    ("CUDA", "Memcpy HtoD (Pinned -> Device)"),
    ("CPU", "aten::mm"),
]


@pytest.fixture
def profiled(monkeypatch) -> list[object]:
    """A GPU on which torch's profiler sees `NAMES`; the list tells what was asked of it."""
    calls: list[object] = []

    @contextmanager
    def profile(*, activities):
        calls.append(activities)
        events = [SimpleNamespace(name=name, device_type=SimpleNamespace(name=kind)) for kind, name in NAMES]
        yield SimpleNamespace(events=lambda: events)
        calls.append("stopped")

    monkeypatch.setattr(kernels_module, "profile", profile)
    monkeypatch.setattr(kernels_module, "supported_activities", lambda: {ProfilerActivity.CUDA})
    monkeypatch.setattr(kernels_module, "synchronize", calls.append)
    return calls


def test_the_kernels_of_products_and_attention_are_counted_by_name(profiled):
    device = torch.device("cuda:0")
    with recorded_kernels(device) as counts:
        assert not counts
    assert counts == {
        "kgemm_4bit_inference_naive<__half, 128, 16>": 2,
        "nvjet_hsh_64x8_64x16_1x2_h_bz_TNT": 1,
        "at::native::(anonymous namespace)::cunn_SoftMaxForward<4, float>": 1,
    }
    # what was launched must have run before the profiler stops
    assert profiled == [[ProfilerActivity.CUDA], device, "stopped"]


@pytest.mark.parametrize("device", ["cpu", "xpu:0"])
def test_a_cpu_and_a_device_that_torch_cannot_profile_give_no_names(profiled, device):
    with recorded_kernels(torch.device(device)) as counts:
        pass
    assert not counts
    assert profiled == []


def test_a_long_name_is_cut():
    assert short_name("void " + "x" * 300 + "(int)") == "x" * 119 + "…"
    assert short_name("odd)") == "odd)"
