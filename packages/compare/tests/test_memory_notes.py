from __future__ import annotations

import io

import pytest
from device_results import LEDGER, MIB, default_table, measured, memory, streamed_facts
from fake_workers import MEMORY
from rich.console import Console

from layerstream_compare.measurement import Measurement
from layerstream_compare.reports.files import drawings, html_report, memory_notes
from layerstream_compare.reports.metrics import rows_of
from layerstream_compare.reports.tables import markdown
from layerstream_compare.reports.terminal import terminal_notes, terminal_table

HOST_NOTE = (
    "streamed holds 84 MiB of host memory, more than resident (0 B), bnb-int8 (0 B) and bnb-nf4 (2 MiB): "
    "weights pass through pinned host memory on their way to the device; its plan counts staging "
    "57 MiB, input embedding 27 MiB; this is the least with which it can be streamed."
)
TIERS = (
    "streamed plans 67 MiB of device memory (budget 67 MiB) and 84 MiB of host memory (budget "
    "84 MiB); a sweep reads 200 MiB from disk and copies 210 MiB to the device."
)


def on_cpu(variant: str, held: int, peak: int, **changes) -> Measurement:
    sizes = {"held_bytes": held * MIB, "peak_over_baseline_bytes": peak * MIB}
    return measured(variant, MEMORY | sizes, **changes)


def text_of_table(measurements: list[Measurement], width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(terminal_table(rows_of(measurements), width=width))
    return console.file.getvalue()


def test_the_default_table_of_an_accelerator_says_why_streamed_takes_host_memory():
    assert memory_notes(default_table()) == [TIERS, HOST_NOTE]


def test_every_report_shows_the_notes():
    rows = rows_of(default_table())
    assert [line.plain for line in terminal_notes(rows)] == [TIERS, HOST_NOTE]
    assert HOST_NOTE in markdown(rows)
    assert HOST_NOTE in html_report(default_table())


def test_titles_replace_the_labels_in_notes():
    _, note = memory_notes(default_table(), {"streamed": "Streamed", "bnb-nf4": "4-bit"})
    assert note.startswith("Streamed holds 84 MiB of host memory, more than resident (0 B), bnb-int8 (0 B)")
    assert "and 4-bit (2 MiB)" in note


def test_a_host_budget_that_was_chosen_is_named_with_what_it_buys():
    ledger = (
        *LEDGER[:4],
        ("host", "host_blocks", "blocks in host memory", 900),
        ("host", "staging", "staging", 57),
    )
    streamed = measured(
        "streamed",
        memory(device_held=60, host_held=957),
        host_budget="auto",
        facts=streamed_facts(ledger),
    )
    (note,) = [note for note in memory_notes([streamed, *default_table()[1:]]) if "holds" in note]
    assert "weights that stay in host memory need not be read from disk" in note
    assert "its plan counts blocks in host memory 900 MiB, staging 57 MiB" in note
    assert note.endswith("its budget of 957 MiB allows that, and the budget min would take the least.")


def test_an_embedding_in_host_memory_alone_is_a_reason_too():
    facts = streamed_facts((*LEDGER[:4], ("host", "embedding", "input embedding", 27)))
    streamed = measured("streamed", memory(device_held=60, host_held=27), facts=facts)
    note = memory_notes([streamed, *default_table()[1:]])[-1]
    assert "(2 MiB): the rows of its embedding are looked up there; its plan counts input embedding" in note


def test_a_device_budget_larger_than_a_quantized_model_is_named():
    sizes, facts = memory(device_held=600, host_held=0), streamed_facts(LEDGER[:4])
    streamed = measured("streamed", sizes, budget="700 MiB", facts=facts)
    note = memory_notes([streamed, *default_table()[1:]])[-1]
    assert note == (
        "streamed holds 600 MiB of device memory, more than bnb-int8 (560 MiB) and bnb-nf4 (340 MiB): its "
        "plan counts slots 40 MiB, edges (norms, buffers) 20 MiB, KV cache 5 MiB; its budget of 67 "
        "MiB allows that, and the budget min would take the least."
    )


def test_a_budget_that_holds_the_whole_model_streams_nothing_and_says_so():
    facts = streamed_facts(LEDGER[:4]) | {"is_resident": True}
    streamed = measured("streamed", memory(device_held=1000, host_held=0), budget="auto", facts=facts)
    note = memory_notes([streamed, *default_table()[1:]])[-1]
    assert "its budget holds the whole model, so nothing is streamed" in note


def test_a_model_too_small_to_matter_is_called_that():
    facts = streamed_facts() | {"unquantized_weight_bytes": 100 * MIB}
    streamed = measured("streamed", memory(device_held=60, host_held=84), facts=facts)
    small = measured("bnb-nf4", memory(device_held=50, host_held=0))
    device, host = memory_notes([streamed, small])[1:]
    assert device.endswith("streamed; the whole model has only 100 MiB of weights.")
    assert host.endswith("streamed; the whole model has only 100 MiB of weights.")


def test_on_a_cpu_a_note_appears_only_where_streamed_is_larger():
    smaller = on_cpu("streamed", held=20, peak=60)
    others = [on_cpu("resident", held=257, peak=320), on_cpu("bnb-nf4", held=98, peak=150)]
    assert memory_notes([smaller, *others]) == []
    assert terminal_notes(rows_of([smaller, *others])) == []
    larger = on_cpu("streamed", held=120, peak=140, budget="120 MiB", facts=streamed_facts(LEDGER[:4]))
    (note,) = memory_notes([larger, *others])
    assert note.startswith(
        "streamed holds 120 MiB of memory, more than bnb-nf4 (98 MiB): its plan counts slots"
    )
    assert note.endswith("allows that, and the budget min would take the least.")


def test_needed_memory_gets_a_note_too_and_lanes_are_not_repeated():
    streamed = on_cpu("streamed", held=120, peak=200)
    others = [on_cpu("resident", held=130, peak=190), on_cpu("bnb-nf4", held=98, peak=150)]
    (note,) = memory_notes([streamed, *others])
    assert note.startswith(
        "streamed holds 120 MiB of memory, more than bnb-nf4 (98 MiB), and needs 200 MiB, more than "
        "resident (190 MiB): "
    )


@pytest.mark.parametrize("facts", [{}, {"budget_bytes": 7}], ids=["none", "a budget alone"])
def test_results_without_a_ledger_still_get_a_reason(facts):
    streamed = on_cpu("streamed", held=120, peak=140, facts=facts)
    (note,) = memory_notes([streamed, on_cpu("bnb-nf4", held=98, peak=150)])
    assert note == (
        "streamed holds 120 MiB of memory, more than bnb-nf4 (98 MiB): "
        "this is the least with which it can be streamed."
    )


def test_another_attention_kernel_is_a_reason_unless_the_others_have_it_too():
    eager = on_cpu("streamed", held=20, peak=300, attention="eager")
    others = [on_cpu("bnb-nf4", held=98, peak=150)]
    (note,) = memory_notes([eager, *others])
    assert "streamed · eager needs 300 MiB of memory" in note
    assert "it ran with another attention kernel, eager" in note
    also_eager = on_cpu("bnb-nf4", held=98, peak=400, attention="eager")
    assert memory_notes([eager, *others, also_eager]) == []


def test_a_difference_that_no_reader_sees_needs_no_note():
    streamed = measured("streamed", MEMORY | {"held_bytes": 98 * MIB + 1})
    assert memory_notes([streamed, measured("bnb-nf4", MEMORY | {"held_bytes": 98 * MIB})]) == []


def test_the_table_of_an_accelerator_has_both_memories_and_a_cpus_has_one():
    table = text_of_table(default_table())
    heads, second = table.splitlines()[:2]
    assert heads.split()[:5] == ["device", "device", "host", "host", "first"]
    assert second.split()[:6] == ["variant", "held", "peak", "held", "needed", "token"]
    assert "84 MiB" in table
    heads = " ".join(text_of_table([on_cpu("resident", held=257, peak=320)]).splitlines()[:2]).split()
    assert not {"device", "host"} & set(heads)
    assert {"held", "working", "spike"} <= set(heads)


def test_a_narrow_terminal_keeps_what_each_memory_needs():
    heads = " ".join(text_of_table(default_table(), width=90).splitlines()[:2]).split()
    assert {"peak", "needed"} <= set(heads)


def test_an_accelerator_has_a_drawing_for_each_memory():
    names = list(drawings(default_table()))
    assert names[:2] == ["memory-device", "memory-host"]
    page = html_report(default_table())
    assert "Device memory" in page
    assert "Host memory" in page


def test_the_figure_of_nvml_is_absent_without_nvml_and_next_to_torchs_with_it():
    assert "device process" not in html_report(default_table())
    assert "device process" not in markdown(rows_of(default_table()))
    page = html_report(default_table(process=1500))
    assert page.count(">device process<") >= 2  # the table, and each case's phases
    assert "device peak | device reserved | device process" in markdown(rows_of(default_table(process=1500)))
