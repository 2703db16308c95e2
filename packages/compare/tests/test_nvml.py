from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest
import torch

import layerstream_compare.worker.nvml as nvml_module
from layerstream_compare.worker.nvml import gpu_facts, process_bytes

ANSWERS = {
    "nvmlDeviceGetName": b"NVIDIA H200",
    "nvmlSystemGetDriverVersion": "580.1",
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=1000, used=810, free=190),
    "nvmlDeviceGetCurrPcieLinkGeneration": 5,
    "nvmlDeviceGetCurrPcieLinkWidth": 16,
}


class FakeNvml:
    """A driver that counts 300 bytes for this process and 500 for another, on one GPU."""

    class NVMLError(Exception):
        pass

    def __init__(self, fails_in: str = "") -> None:
        self.calls = []
        self._answers = dict(ANSWERS)
        self._fails_in = fails_in

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append((name, *arguments))
            if name == self._fails_in:
                raise self.NVMLError("Unknown Error")
            if name == "nvmlDeviceGetComputeRunningProcesses":
                return [
                    SimpleNamespace(pid=os.getpid(), usedGpuMemory=300),
                    SimpleNamespace(pid=1, usedGpuMemory=500),
                ]
            return self._answers.get(name, "handle")

        return call


@pytest.fixture
def one_gpu(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc"))
    monkeypatch.setattr(nvml_module, "has_package", lambda name: True)


def test_nvml_is_queried_by_gpu_uuid_and_counts_this_process_only(one_gpu, monkeypatch):
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert process_bytes(torch.device("cuda:0")) == 300
    assert ("nvmlDeviceGetHandleByUUID", "GPU-abc") in nvml.calls
    assert nvml.calls[-1] == ("nvmlShutdown",)
    assert process_bytes(torch.device("cpu")) == 0


@pytest.mark.parametrize("fails_in", ["nvmlInit", "nvmlDeviceGetComputeRunningProcesses"])
def test_a_failing_driver_gives_0(one_gpu, monkeypatch, fails_in):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(fails_in))
    assert process_bytes(torch.device("cuda:0")) == 0


def test_facts_of_the_gpu_say_whose_memory_is_in_use_and_how_wide_its_link_is(one_gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    assert gpu_facts(torch.device("cuda:0")) == {
        "nvml": {
            "gpu": "NVIDIA H200",
            "driver": "580.1",
            "memory_bytes": 1000,
            "memory_in_use_bytes": 810,
            "pcie_generation": 5,
            "pcie_lanes": 16,
        }
    }


def test_facts_say_in_one_line_why_nvml_has_none(one_gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml("nvmlDeviceGetName"))
    assert gpu_facts(torch.device("cuda:0")) == {"nvml": "NVML: Unknown Error"}
    monkeypatch.setattr(nvml_module, "has_package", lambda name: False)
    assert process_bytes(torch.device("cuda:0")) == 0
    assert gpu_facts(torch.device("cuda:0")) == {
        "nvml": "the package nvidia-ml-py is not installed: pip install nvidia-ml-py"
    }


def test_other_devices_have_no_facts_of_nvml(monkeypatch):
    assert gpu_facts(torch.device("cpu")) == {}
    # torch calls AMD's GPUs cuda too
    monkeypatch.setattr(torch.version, "cuda", None)
    assert gpu_facts(torch.device("cuda:0")) == {}
    assert process_bytes(torch.device("cuda:0")) == 0
