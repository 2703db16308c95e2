from __future__ import annotations

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import NORM_ELEMENTS, QUANTIZED_ELEMENTS, SHAPES, VOCABULARY_ELEMENTS, save_tiny_model
from transformers import AutoModelForCausalLM

from layerstream_compare.case import Case
from layerstream_compare.variants import bnb, streamed
from layerstream_compare.worker.background_load import BackgroundLoadMeter, busy_s
from layerstream_compare.worker.memory import PhaseMeter, held_bytes, mapped_held_bytes, read_memory

MIB = 1024**2
UNQUANTIZED_BYTES = 2 * (NORM_ELEMENTS + 2 * VOCABULARY_ELEMENTS)
ROTARY_BYTES = 4 * 8 * 2
"""inv_freq and its original, float32, each for half of a head's 16 dimensions."""

CHILD = """
import json, mmap, sys, tempfile
import torch
from layerstream_compare.worker.background_load import BackgroundLoadMeter, busy_s
from layerstream_compare.worker.memory import PhaseMeter, read_memory
meter = PhaseMeter(torch.device("cpu"))
before = read_memory()
meter.start("spike")
spike = bytearray(b"x") * (96 * 1024**2)
del spike
meter.stop()
meter.start("held")
held = bytearray(b"x") * (64 * 1024**2)
meter.stop()
meter.start("mapped")
with tempfile.TemporaryFile() as file:
    file.write(b"x" * (32 * 1024**2))
    file.flush()
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    total = sum(mapped[::4096])
    meter.stop()
rows = [(phase.anonymous_bytes, phase.file_bytes, phase.peak_bytes) for phase in meter.phases]
print(json.dumps({"before": [before.anonymous_bytes, before.file_bytes, before.resident_bytes], "rows": rows,
                  "reset": meter.peak_is_reset}))
"""


def test_a_known_allocation_is_measured_correctly():
    finished = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    readings = json.loads(finished.stdout)
    anonymous, file, resident = readings["before"]
    spike, held, mapped = readings["rows"]
    slack = 2 * MIB  # the kernel's counters lag a little, and the interpreter allocates too
    assert readings["reset"]
    assert spike[0] - anonymous == pytest.approx(0, abs=slack)
    assert spike[2] - resident == pytest.approx(96 * MIB, abs=slack)
    assert held[0] - anonymous == pytest.approx(64 * MIB, abs=slack)
    # the peak was reset in between, so the spike is gone
    assert held[2] - resident == pytest.approx(64 * MIB, abs=slack)
    assert mapped[1] - file == pytest.approx(32 * MIB, abs=slack)
    assert mapped[0] - held[0] == pytest.approx(0, abs=slack)


def test_background_load_counts_other_processes_and_not_this_one():
    burn = "import time; end = time.perf_counter() + 60\nwhile time.perf_counter() < end: pass"
    meter = BackgroundLoadMeter()
    with subprocess.Popen([sys.executable, "-c", burn]) as other:
        end_s = time.perf_counter() + 1.5
        while time.perf_counter() < end_s:
            time.sleep(0.01)
        other.kill()
    assert meter.cores() > 0.2
    meter, start_s, before_s = BackgroundLoadMeter(), time.perf_counter(), busy_s()
    end_s = time.process_time() + 0.5
    while time.process_time() < end_s:
        pass
    cores, elapsed_s = meter.cores(), time.perf_counter() - start_s
    # this process's time counts as busy, but not as background load
    assert cores * elapsed_s < busy_s() - before_s - 0.3


def test_a_phase_without_work_uses_no_memory():
    meter = PhaseMeter(torch.device("cpu"))
    meter.start("load")
    phase = meter.stop()
    now = read_memory()
    assert phase.phase == "load"
    assert (phase.device_allocated_bytes, phase.device_reserved_bytes) == (0, 0)
    assert phase.peak_bytes >= phase.anonymous_bytes + phase.file_bytes
    assert abs(now.resident_bytes - phase.anonymous_bytes - phase.file_bytes) < 4 * MIB


def test_an_accelerator_is_initialized_before_its_counters_are_reset(monkeypatch):
    started = []

    def needs_start(device):
        if not started:
            raise RuntimeError("Invalid device argument : did you call init?")
        return 7

    names = ("reset_peak_memory_stats", "max_memory_allocated", "max_memory_reserved")
    monkeypatch.setattr(
        torch, "get_device_module", lambda device: SimpleNamespace(**dict.fromkeys(names, needs_start))
    )
    monkeypatch.setattr(torch, "empty", lambda *size, device: started.append(device))
    meter = PhaseMeter(torch.device("cuda:0"))
    meter.start("import")
    assert meter.stop().device_allocated_bytes == 7
    assert started == [torch.device("cuda:0")]


def test_a_plain_model_holds_its_parameters_and_buffers(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert held_bytes(model) == 2 * QUANTIZED_ELEMENTS + UNQUANTIZED_BYTES + ROTARY_BYTES


def test_weights_in_a_mapped_checkpoint_are_distinguished_from_private_ones(tmp_path):
    tensors = {"a": torch.ones(50_000), "b": torch.ones(70_000)}
    save_file(tensors, tmp_path / "some.safetensors")
    mapped = load_file(tmp_path / "some.safetensors")
    module = torch.nn.Module()
    module.a, module.private = torch.nn.Parameter(mapped["a"]), torch.nn.Parameter(torch.ones(1000))
    assert mapped_held_bytes(module) == 200_000
    assert held_bytes(module) == 204_000
    assert mapped_held_bytes(torch.nn.Linear(8, 8)) == 0


def test_tied_weights_count_once(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path, tied=True))
    assert held_bytes(model) == 2 * (QUANTIZED_ELEMENTS + NORM_ELEMENTS + VOCABULARY_ELEMENTS) + ROTARY_BYTES


def test_views_of_one_storage_count_once():
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            whole = torch.zeros(100, dtype=torch.float32)
            self.first, self.second = torch.nn.Parameter(whole[:10]), torch.nn.Parameter(whole[5:20])

    assert held_bytes(Module()) == 400


def test_weights_on_a_cpu_do_not_count_as_accelerator_memory():
    module = torch.nn.Linear(8, 8)
    assert held_bytes(module, on_accelerator_only=True) == 0


def test_meta_tensors_hold_nothing():
    assert held_bytes(torch.nn.Linear(8, 8, device="meta")) == 0


def test_8_bit_weights_hold_one_byte_each_and_one_scale_per_row(tiny_model):
    rows = 2 * sum(rows for rows, _ in SHAPES)
    expected = QUANTIZED_ELEMENTS + 4 * rows + UNQUANTIZED_BYTES + ROTARY_BYTES
    with torch.no_grad():
        model = bnb.load(Case(model=tiny_model, variant="bnb-int8", device="cpu")).model
        assert held_bytes(model) == expected
        model(torch.tensor([[5, 6, 7]]))
    assert held_bytes(model) == expected


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_4_bit_weights_hold_half_a_byte_each_a_scale_per_64_and_a_code_table(tiny_model, quant_type):
    loaded = bnb.load(Case(model=tiny_model, variant=f"bnb-{quant_type}", device="cpu"))
    matrices = 2 * len(SHAPES)
    expected = (
        QUANTIZED_ELEMENTS // 2
        + 4 * QUANTIZED_ELEMENTS // 64
        + matrices * 16 * 4
        + UNQUANTIZED_BYTES
        + ROTARY_BYTES
    )
    assert held_bytes(loaded.model) == expected


def test_double_quantization_holds_one_byte_scales_and_their_state(tiny_model):
    loaded = bnb.load(Case(model=tiny_model, variant="bnb-nf4-dq", device="cpu"))
    matrices = 2 * len(SHAPES)
    scales = QUANTIZED_ELEMENTS // 64
    # per matrix: the scales' own scale (fewer than 256 share one), the offset, the table of 16 codes
    state = matrices * (4 + 4 + 16 * 4)
    table = 256 * 4
    plain = QUANTIZED_ELEMENTS // 2 + scales + state + UNQUANTIZED_BYTES + ROTARY_BYTES
    assert held_bytes(loaded.model) in (plain + table, plain + matrices * table)


def test_repacking_for_the_cpu_kernel_changes_the_held_bytes(tiny_model):
    loaded = bnb.load(Case(model=tiny_model, variant="bnb-nf4", device="cpu"))
    before = held_bytes(loaded.model)
    with torch.no_grad():
        loaded.model(torch.tensor([[5, 6, 7]]))
    repacked = loaded.facts()["repacked_for_cpu"]
    # repacked scales are bfloat16 instead of float32
    assert before - held_bytes(loaded.model) == (2 * QUANTIZED_ELEMENTS // 64 if repacked else 0)


def test_torchao_holds_bytes_and_scales(tiny_model):
    pytest.importorskip("torchao")
    from layerstream_compare.variants import torchao_int8  # noqa: PLC0415  an optional extra

    model = torchao_int8.load(Case(model=tiny_model, variant="torchao-int8", device="cpu")).model
    unquantized = UNQUANTIZED_BYTES + ROTARY_BYTES
    groups = QUANTIZED_ELEMENTS // 64
    assert (
        QUANTIZED_ELEMENTS + 2 * groups <= held_bytes(model) - unquantized <= QUANTIZED_ELEMENTS + 8 * groups
    )


def test_packed_3_bit_weights_hold_three_bits(tiny_model):
    pytest.importorskip("auto_round")
    from layerstream_compare.variants import autoround  # noqa: PLC0415  an optional extra

    loaded = autoround.load(Case(model=tiny_model, variant="autoround-int3", device="cpu"))
    unquantized = UNQUANTIZED_BYTES + ROTARY_BYTES
    held = held_bytes(loaded.model) - unquantized
    loaded.close()
    assert QUANTIZED_ELEMENTS * 3 // 8 < held < QUANTIZED_ELEMENTS // 2


def test_a_streamed_model_holds_its_edges_and_slots(tiny_model):
    loaded = streamed.load(
        Case(model=tiny_model, variant="streamed", prompt="Hello", budget="min", max_new_tokens=4)
    )
    try:
        modules = held_bytes(loaded.model)
        slots = loaded.extra_held_bytes
        assert slots > 0
        assert modules + slots < 2 * QUANTIZED_ELEMENTS + UNQUANTIZED_BYTES
        with torch.no_grad():
            loaded.model(torch.tensor([[5, 6, 7]]))
        # no weights stay bound between forwards, so slots are not counted twice
        assert held_bytes(loaded.model) == modules
    finally:
        loaded.close()
