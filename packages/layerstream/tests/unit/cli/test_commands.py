"""Every command on a real tiny checkpoint, in this process, compared with what the library returns."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import layerstream
from layerstream.checkpoint.made_copies import DEFAULT_HUB_ID, default_copy
from layerstream.cli.app import main

pytestmark = pytest.mark.usefixtures("quiet_terminal")


@pytest.fixture(scope="module")
def expected_text(tiny_llama_dir: Path) -> str:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    inputs = tokenizer("hello", return_tensors="pt")
    rows = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    return str(tokenizer.decode(rows[0][5:], skip_special_tokens=True))


def run(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> tuple[str, str]:
    assert main([str(argument) for argument in arguments]) == status, capsys.readouterr().err
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_run_streams_the_resident_models_text_and_nothing_else_to_stdout(
    tiny_llama_dir: Path, expected_text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = run(capsys, "run", tiny_llama_dir, "-p", "hello", "-n", 6, "--budget", "min")
    assert out == expected_text + "\n"
    assert "predicted peak" in err
    assert "5 prompt tokens, 6 new tokens: the first after" in err
    assert "waiting" in err


def test_an_answer_that_cannot_fit_the_budget_is_one_line_and_status_2(
    tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = layerstream.Workload(prompt_tokens=2, new_tokens=1)
    needed_bytes = layerstream.plan(
        tiny_llama_dir, budget="min", device="cpu", workload=workload
    ).ledger.device_bytes
    monkeypatch.setattr(
        "layerstream.cli.backend.load_with",
        lambda model, _, **__: layerstream.load(model, budget=needed_bytes, device="cpu", workload=workload),
        raising=False,
    )
    out, err = run(capsys, "run", tiny_llama_dir, "-p", "hello " * 20, "-n", 60, "--quiet", status=2)
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: this generate() of 1 row of 120 tokens")
    assert "prompt_tokens=120, new_tokens=60" in line


def test_run_quiet_prints_only_the_answer(
    tiny_llama_dir: Path, expected_text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = run(capsys, "run", tiny_llama_dir, "-p", "hello", "-n", 6, "--quiet")
    assert (out, err) == (expected_text + "\n", "")


def test_run_json_has_answer_plan_and_report(
    tiny_llama_dir: Path, expected_text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = run(capsys, "run", tiny_llama_dir, "-p", "hello", "-n", 6, "--budget", "min", "--json")
    printed = json.loads(out)
    assert printed["prompt"] == "hello"
    assert printed["answer"]["text"] == expected_text
    assert printed["answer"]["prompt_tokens"] == 5
    assert printed["report"]["sweeps"] == printed["answer"]["new_tokens"]
    assert printed["plan"]["ledger"]["device_bytes"] <= printed["plan"]["ledger"]["device_budget_bytes"]


def test_run_reads_the_prompt_from_a_pipe(
    tiny_llama_dir: Path,
    expected_text: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello"))
    out, _ = run(capsys, "run", tiny_llama_dir, "-n", 6, "-q")
    assert out == expected_text + "\n"


def test_run_with_a_seed_repeats_its_sample_which_is_not_the_greedy_text(
    tiny_llama_dir: Path, expected_text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sampled = ["run", tiny_llama_dir, "-p", "hello", "-n", 6, "-q", "--temperature", 5.0, "--seed"]
    first, _ = run(capsys, *sampled, 1)
    torch.manual_seed(99)
    again, _ = run(capsys, *sampled, 1)
    assert first == again
    assert first != expected_text + "\n"


def test_run_without_chat_says_that_a_chat_model_has_a_template(
    tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, is_told in (([], True), (["--chat"], False), (["--quiet"], False)):
        _, err = run(capsys, "run", tiny_llama_dir, "-p", "hello", "-n", "1", *options)
        assert ("with --chat, the prompt is put into its chat template" in err) is is_told


def test_run_with_chat_counts_the_templates_tokens_too(
    tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = run(capsys, "run", tiny_llama_dir, "-p", "hello", "-n", 1, "--chat", "--json")
    assert json.loads(out)["answer"]["prompt_tokens"] == len("[user] hello\n> ")


@pytest.mark.parametrize("suffix", [".json", ".html", ".svg"])
def test_run_writes_the_trace_in_the_format_of_its_suffix(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    trace = tmp_path / f"trace{suffix}"
    run(capsys, "run", tiny_llama_dir, "-p", "hello", "-n", 2, "-q", "--budget", "min", "--trace", trace)
    beginnings = {".json": '{"traceEvents"', ".html": "<!doctype html>", ".svg": "<svg"}
    assert trace.read_text().startswith(beginnings[suffix])
    assert "model.layers.3" in trace.read_text()


def test_plan_prints_what_the_library_explains(
    tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = run(capsys, "plan", tiny_llama_dir, "--budget", "min", "--json")
    printed = json.loads(out)
    plan = layerstream.plan(tiny_llama_dir, budget="min")
    assert [unit["name"] for unit in printed["units"]] == [unit.name for unit in plan.units]
    assert printed["ledger"]["device_bytes"] == plan.ledger.device_bytes
    shown, _ = run(capsys, "plan", tiny_llama_dir, "--budget", "min")
    assert shown.splitlines()[0] == plan.explain().splitlines()[0]


def test_plan_counts_the_prefix_cache_of_a_server(
    tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = run(capsys, "plan", tiny_llama_dir, "--budget", "min", "--prefix-cache", "1MiB")
    line = next(line for line in out.splitlines() if "prefix cache" in line)
    assert "1,048,576 B" in line


def test_plan_works_for_a_machine_and_a_known_model_that_are_not_here(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, _ = run(capsys, "plan", "llama-2-70b", "--machine", "gpu=16GB,ram=32GB,disk=2.5GB/s", "--json")
    printed = json.loads(out)
    assert printed["device"] == "cuda:0"
    assert printed["ledger"]["device_bytes"] <= 16_000_000_000
    assert printed["cost"]["limited_by"] == "disk"


def test_a_machine_written_by_probe_can_be_planned_for(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = run(capsys, "probe", "--path", tmp_path, "--device", "cpu", "--json")
    machine = tmp_path / "machine.json"
    machine.write_text(out)
    planned, _ = run(capsys, "plan", tiny_llama_dir, "--machine", machine, "--json")
    assert json.loads(planned)["device"] == "cpu"


def test_a_machine_file_may_have_sizes_as_text_and_leave_out_rates(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = tmp_path / "machine.json"
    machine.write_text('{"device": "cuda:0", "device_memory_bytes": "16GB", "host_memory_bytes": 32e9}')
    planned, _ = run(capsys, "plan", tiny_llama_dir, "--machine", machine, "--json")
    assert json.loads(planned)["ledger"]["device_budget_bytes"] == 16_000_000_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "a JSON object"),
        ('{"device_memory_bytes": "16GB"}', "lacks host_memory_bytes"),
        ('{"device_memory_bytes": "16GB", "host_memory_bytes": "1GB", "gpu": 1}', "gpu"),
        ('{"device_memory_bytes": "16GB", "host_memory_bytes": "1GB", "flops_per_s": "fast"}', "flops_per_s"),
    ],
)
def test_a_machine_file_with_a_wrong_field_is_refused(
    content: str, message: str, tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = tmp_path / "machine.json"
    machine.write_text(content)
    _, err = run(capsys, "plan", tiny_llama_dir, "--machine", machine, status=2)
    assert "cannot use the machine" in err
    assert message in err


def test_probe_shows_every_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(capsys, "probe", "--path", tmp_path, "--device", "cpu")
    assert all(word in out for word in ("disk", "GB/s", "GFLOP/s", "host memory free"))


def test_estimate_computes_the_known_models_from_their_configs(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(capsys, "estimate", "--json")
    gigabytes = {estimate["name"]: estimate["weight_bytes"]["float16"] / 1e9 for estimate in json.loads(out)}
    published = {
        "GPT-3 175B": 350,
        "BLOOM 176B": 352,
        "Llama-2-70B": 140,
        "Falcon-40B": 80,
        "MPT-30B": 60,
        "StarCoder 15.5B": 31,
    }
    assert set(gigabytes) == {model.title for model in layerstream.KNOWN_MODELS.values()}
    for name, about in published.items():
        assert gigabytes[name] == pytest.approx(about, rel=0.04)


def test_estimate_ticks_the_precisions_that_fit(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(capsys, "estimate", "starcoder-15.5b", "--memory", "16GB")
    row = next(line for line in out.splitlines() if line.startswith("StarCoder"))
    assert row.split()[4:] == ["62.1", "31", "15.5", "✓", "7.76", "✓", "5.82", "✓", "3.88", "✓"]


def test_estimate_takes_a_directory_and_a_config_file(
    tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = run(capsys, "estimate", tiny_llama_dir, tiny_llama_dir / "config.json", "--json")
    directory, file = json.loads(out)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    assert directory["num_parameters"] == file["num_parameters"] == model.num_parameters()


def test_trace_measures_a_run_and_writes_both_files(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "trace", tiny_llama_dir, "--out", tmp_path / "t", "--sweeps", 2, "--budget", "min")
    events = [
        event for event in json.loads((tmp_path / "t.json").read_text())["traceEvents"] if event["ph"] == "X"
    ]
    assert {event["cat"] for event in events} >= {"read", "compute"}
    assert "Measured on cpu" in (tmp_path / "t.html").read_text()


def test_trace_simulates_without_running(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(
        capsys,
        "trace",
        tiny_llama_dir,
        "--out",
        tmp_path / "t",
        "--machine",
        "ram=8GB,disk=1GB",
        "--budget",
        "min",
        "--sweeps",
        3,
    )
    events = [
        event for event in json.loads((tmp_path / "t.json").read_text())["traceEvents"] if event["ph"] == "X"
    ]
    assert {event["args"]["sweep"] for event in events} == {0, 1, 2}
    assert "nothing was run" in (tmp_path / "t.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "/no/such/place"], "/no/such/place"),
        (["plan", "TINY", "--budget", "many"], "'many' is not a size"),
        (["plan", "TINY", "--budget", "1KiB"], "give at least"),
        (["plan", "TINY", "--machine", "gpu=16GB"], "lacks ram"),
        (["plan", "TINY", "--machine", "cpu=16GB"], "unknown key 'cpu'"),
        (["plan", "TINY", "--machine", "absent.json"], "cannot read the machine"),
        (["run", "TINY", "-p", "  "], "the prompt is empty"),
        (["run", "TINY", "-p", "hello", "--trace", "t.txt"], "not 't.txt'"),
        (["run", "TINY", "-p", "hello", "--trace", "absent/t.json"], "there is no directory"),
        (["estimate", "TINY/absent.json"], "cannot read the config"),
        (["estimate", "--memory", "lots"], "'lots' is not a size"),
    ],
)
def test_an_error_is_one_line_on_stderr_and_status_2(
    arguments: list[str], message: str, tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = run(
        capsys, *(argument.replace("TINY", str(tiny_llama_dir)) for argument in arguments), status=2
    )
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_config_that_transformers_does_not_know_is_one_error_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ('{"model_type": "no-such-thing"}', "[]", "{", '{"hidden_size": 3}'):
        (tmp_path / "config.json").write_text(text)
        _, err = run(capsys, "estimate", tmp_path / "config.json", status=2)
        assert "is not a config that transformers understands" in err


def test_a_checkpoint_without_tokenizer_or_chat_template_is_reported(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_llama_dir / name, tmp_path)
    _, err = run(capsys, "run", tmp_path, "-p", "hello", status=2)
    assert "cannot read a tokenizer" in err and "it has none of tokenizer.json" in err
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    _, err = run(capsys, "run", tmp_path, "-p", "hello", "--chat", status=2)
    assert "no chat template" in err


def test_ctrl_c_during_an_answer_has_status_130_and_closes_the_model(
    tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []
    close = layerstream.StreamedModel.close
    monkeypatch.setattr(
        layerstream.StreamedModel, "close", lambda self: (closed.append(self), close(self))[1]
    )

    class Interrupting(io.StringIO):
        def write(self, text: str) -> int:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdout", Interrupting())
    assert main(["run", str(tiny_llama_dir), "-p", "hello", "-n", "40", "--budget", "min"]) == 130
    assert "Traceback" not in capsys.readouterr().err
    assert closed


def test_version_is_the_packages_version(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(capsys, "--version")
    assert out == f"layerstream {layerstream.__version__}\n"


def test_a_mistyped_option_has_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    _, err = run(capsys, "plan", "--bugdet", "3", status=2)
    assert "--bugdet" in err


def test_the_options_about_files_reach_the_model_and_the_tokenizer(
    tiny_llama_dir: Path, tmp_path: Path, expected_text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = tmp_path / "inner"
    shutil.copytree(tiny_llama_dir, inner)
    (inner / "model.safetensors").rename(inner / "model.mine.safetensors")
    options = ("--subfolder", "inner", "--variant", "mine", "--local-files-only", "--cache-dir", tmp_path)
    out, _ = run(capsys, "run", tmp_path, "-p", "hello", "-n", 6, "--quiet", *options)
    assert out == expected_text + "\n"
    out, _ = run(capsys, "plan", tmp_path, "--budget", "min", "--json", *options)
    assert json.loads(out)["units"]
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "hello"}\n', encoding="utf-8")
    run(capsys, "batch", rows, tmp_path / "results.jsonl", "-m", tmp_path, "-n", 6, "-q", *options)
    _, result = (tmp_path / "results.jsonl").read_text().splitlines()
    assert json.loads(result)["text"] == expected_text
    _, err = run(capsys, "run", tmp_path, "-p", "hello", "--subfolder", "inner", "--variant", "x", status=2)
    assert "neither model.x.safetensors nor" in err


def test_without_a_network_the_default_models_id_runs_its_copy_and_another_fails_at_once(
    tiny_llama_dir: Path,
    tmp_path: Path,
    expected_text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    shutil.copytree(tiny_llama_dir, default_copy())
    with pytest.warns(UserWarning, match="using the copy that layerstream made"):
        out, _ = run(capsys, "run", DEFAULT_HUB_ID, "-p", "hello", "-n", 6, "--quiet")
    assert out == expected_text + "\n"
    _, err = run(capsys, "run", "org/name", "-p", "hello", status=2)
    assert err.count("\n") == 1
    assert "offline mode (HF_HUB_OFFLINE) forbids a download" in err
