"""`layerstream batch` on a real tiny checkpoint: each row once, the library's answers, killed and resumed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from kit.job_files import results_of, write_lines

import layerstream as ls
from layerstream.cli.app import main

pytestmark = pytest.mark.usefixtures("quiet_terminal")
PROMPTS = ["hello", "The sea is", "a", "Two and two make four, and"]


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def run(*arguments: object) -> int:
    return main(["batch", *map(str, arguments)])


def test_every_row_gets_the_librarys_answer(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"id": f"q{number}", "prompt": prompt, "max_new_tokens": 5 + number}
        for number, prompt in enumerate(PROMPTS)
    ]
    source, target = write_lines(tmp_path / "in.jsonl", *rows), tmp_path / "out.jsonl"
    assert run(source, target, "-m", tiny_llama_dir, "--budget", "min", "--no-packed") == 0
    with ls.load(tiny_llama_dir, budget="min") as streamed:
        requests = [
            ls.GenerationRequest(prompt=row["prompt"], max_new_tokens=row["max_new_tokens"]) for row in rows
        ]
        expected = ls.generate_many(streamed, requests, packed=False)
    results = results_of(target)
    assert [(results[n + 1]["id"], results[n + 1]["text"]) for n in range(4)] == [
        (row["id"], result.text) for row, result in zip(rows, expected, strict=True)
    ]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "4 of 4 rows have a result" in captured.err


def test_several_devices_share_the_rows(tiny_llama_dir: Path, tmp_path: Path) -> None:
    rows = [{"prompt": prompt, "max_new_tokens": 4} for prompt in PROMPTS]
    source = write_lines(tmp_path / "in.jsonl", *rows)
    options = ("-m", tiny_llama_dir, "--budget", "min", "--no-packed", "--quiet")
    assert run(source, tmp_path / "one.jsonl", *options) == 0
    assert run(source, tmp_path / "two.jsonl", *options, "--device", "cpu,cpu") == 0
    one, two = results_of(tmp_path / "one.jsonl"), results_of(tmp_path / "two.jsonl")
    assert {row: result["text"] for row, result in one.items()} == {
        row: result["text"] for row, result in two.items()
    }


@pytest.mark.parametrize("devices", ["cpu,", "cpu,abacus", "cpu,cuda:99"])
def test_a_device_that_does_not_exist_is_reported(
    devices: str, tiny_llama_dir: Path, tmp_path: Path, capsys: Any
) -> None:
    source = write_lines(tmp_path / "in.jsonl", {"prompt": "hello"})
    assert run(source, tmp_path / "out.jsonl", "-m", tiny_llama_dir, "--device", devices) == 2
    assert "device" in capsys.readouterr().err


def test_progress_with_the_time_left_goes_to_stderr(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If stderr is not a terminal, there is a line every few seconds; here after every step."""
    monkeypatch.setattr("layerstream.cli.row_job._LOG_EVERY_S", 0.0)
    rows = [{"prompt": prompt, "max_new_tokens": 4} for prompt in PROMPTS]
    source = write_lines(tmp_path / "in.jsonl", *rows)
    assert (
        run(source, tmp_path / "out.jsonl", "-m", tiny_llama_dir, "--budget", "min", "--max-rows", "2") == 0
    )
    lines = [line for line in capsys.readouterr().err.splitlines() if "rows · " in line]
    assert "tokens · sweep 1 · at most" in lines[0] and lines[0].startswith("0/4 rows")
    assert lines[-1].startswith("4/4 rows") and lines[-1].endswith("left")


def test_every_row_has_its_own_settings(tiny_llama_dir: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": "hello", "temperature": 0.7, "seed": 3, "max_new_tokens": 4},
        {"prompt": "hello", "num_beams": 2, "max_new_tokens": 4},
        {"ids": [10, 11, 12], "max_new_tokens": 3, "options": {"repetition_penalty": 1.2}},
        {"prompt": "hello", "stop": "e", "max_new_tokens": 30},
    ]
    source, target = write_lines(tmp_path / "in.jsonl", *rows), tmp_path / "out.jsonl"
    assert run(source, target, "-m", tiny_llama_dir, "--quiet") == 0
    results = results_of(target)
    assert results[1]["seed"] == 3
    assert [results[n]["prompt_tokens"] for n in (1, 3)] == [5, 3]
    assert all(0 < result["new_tokens"] <= 30 for result in results.values())


def test_a_bad_row_becomes_an_error_row_and_the_rest_is_answered(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[Any] = [
        {"prompt": "hello", "max_new_tokens": 3},
        "{torn",
        {"id": "x"},
        {"prompt": 5},
        {"prompt": "hello", "max_new_token": 3},
        {"ids": [1, 5000]},
        {"prompt": "hello", "max_new_tokens": -1},
        {"prompt": "hello", "max_new_tokens": 3, "options": {"cache_implementation": "no such thing"}},
        {"prompt": "hello", "options": 7},
        {"prompt": "fine too", "max_new_tokens": 3},
    ]
    source, target = write_lines(tmp_path / "in.jsonl", *rows), tmp_path / "out.jsonl"
    assert run(source, target, "-m", tiny_llama_dir, "--budget", "min") == 1
    results = results_of(target)
    assert sorted(results) == list(range(1, 11))
    assert [number for number, result in sorted(results.items()) if "error" in result] == [
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        9,
    ]
    assert "unknown key max_new_token" in results[5]["error"]
    assert "10 of 10 rows have a result, 8 of them an error" in capsys.readouterr().err
    before = target.read_bytes()
    assert run(source, target, "-m", tiny_llama_dir) == 1
    assert target.read_bytes() == before


def test_started_again_it_answers_the_remaining_rows(tiny_llama_dir: Path, tmp_path: Path) -> None:
    rows = [{"prompt": prompt, "max_new_tokens": 4} for prompt in PROMPTS]
    source = write_lines(tmp_path / "in.jsonl", *rows)
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    arguments = ("-m", tiny_llama_dir, "--budget", "min", "--no-packed", "--quiet")
    assert run(source, whole, *arguments) == 0
    lines = whole.read_bytes().splitlines(keepends=True)
    resumed.write_bytes(lines[0] + lines[1] + lines[2][:20])
    assert run(source, resumed, *arguments) == 0
    assert results_of(resumed) == results_of(whole)
    assert resumed.read_bytes().startswith(lines[0] + lines[1])


def test_a_disk_that_fails_leaves_the_rows_for_the_next_start(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))
    shard = sorted(checkpoint.glob("*.safetensors"))[-1]
    source, target = (
        write_lines(tmp_path / "in.jsonl", {"prompt": "hello", "max_new_tokens": 3}),
        tmp_path / "out.jsonl",
    )
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    assert run(source, target, "-m", checkpoint, "--budget", "min") == 2
    assert not target.exists()
    assert "error:" in capsys.readouterr().err
    shard.write_bytes(whole)
    assert run(source, target, "-m", checkpoint, "--budget", "min") == 0
    assert len(results_of(target)) == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_at_random_times_it_loses_and_repeats_nothing(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """kill -9, each time after some new results; the answers are those of an uninterrupted run."""
    rng = random.Random(3)
    rows = [
        {"id": number, "prompt": "hello" * (1 + number % 5), "max_new_tokens": 10 + number % 20}
        for number in range(24)
    ]
    source, killed, whole = (
        write_lines(tmp_path / "in.jsonl", *rows),
        tmp_path / "killed.jsonl",
        tmp_path / "whole.jsonl",
    )
    arguments = ["-m", str(tiny_llama_dir), "--budget", "min", "--no-packed", "--max-rows", "4", "--quiet"]
    program = [sys.executable, "-c", "import sys; from layerstream.cli.app import main; sys.exit(main())"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for _ in range(2):
        process = subprocess.Popen([*program, "batch", str(source), str(killed), *arguments], env=environment)
        before = max(num_lines(killed), len(["the header"]))
        while process.poll() is None and num_lines(killed) <= before:
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert num_lines(killed) > 1
    assert run(source, killed, *arguments) == 0
    assert run(source, whole, *arguments) == 0
    assert results_of(killed) == results_of(whole)
    assert sorted(results_of(killed)) == list(range(1, 25))


CHAT = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize("options", [(), ("--chat",)], ids=["without --chat", "with --chat"])
def test_rows_may_hold_messages_and_prompts(
    options: tuple[str, ...], tiny_llama_dir: Path, tmp_path: Path
) -> None:
    rows = [{"messages": CHAT}, {"prompt": "hello"}, {"prompt": "[user] hello\n> "}]
    source, target = write_lines(tmp_path / "in.jsonl", *rows), tmp_path / "out.jsonl"
    assert run(source, target, "-m", tiny_llama_dir, "-n", 6, "--no-packed", "--quiet", *options) == 0
    results = results_of(target)
    with ls.load(tiny_llama_dir) as streamed:
        (chat,) = ls.generate_many(streamed, [ls.GenerationRequest(messages=CHAT, max_new_tokens=6)])
        (prompt,) = ls.generate_many(streamed, [ls.GenerationRequest(prompt="hello", max_new_tokens=6)])
    assert results[1]["text"] == chat.text
    assert results[2]["text"] == (chat.text if options else prompt.text)
    assert (results[3]["text"] == chat.text) == (not options), "--chat puts this text into the template again"


def test_settings_for_all_rows_are_those_of_rows_without_their_own(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    own_stop, own_sampling = {"stop": ["never"]}, {"temperature": 0.9, "options": {"top_p": 0.3}, "seed": 9}
    rows = [{"prompt": "hello"}, {"prompt": "hello", **own_stop}, {"prompt": "hello", **own_sampling}]
    source, target = write_lines(tmp_path / "in.jsonl", *rows), tmp_path / "out.jsonl"
    settings = ("--chat", "--system", "Be brief.", "--top-p", 0.5, "--seed", 4, "--stop", "e", "--stop", "a")
    assert run(source, target, "-m", tiny_llama_dir, "-n", 20, "--no-packed", "--quiet", *settings) == 0
    chat = [{"role": "system", "content": "Be brief."}, *CHAT]
    with ls.load(tiny_llama_dir) as streamed:
        requests = [
            ls.GenerationRequest(
                messages=chat, max_new_tokens=20, do_sample=True, seed=seed, options={"top_p": top_p}, **own
            )
            for seed, top_p, own in (
                (5, 0.5, {"stop": ("e", "a")}),
                (6, 0.5, {"stop": ("never",)}),
                (9, 0.3, {"stop": ("e", "a"), "temperature": 0.9}),
            )
        ]
        expected = ls.generate_many(streamed, requests, packed=False)
    results = results_of(target)
    assert [results[row]["text"] for row in (1, 2, 3)] == [result.text for result in expected]


def test_a_row_that_samples_takes_the_temperature_for_all_rows(tiny_llama_dir: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "hello", "do_sample": True}, {"prompt": "hello", "do_sample": False}]
    source, target = write_lines(tmp_path / "in.jsonl", *rows), tmp_path / "out.jsonl"
    settings = ("--temperature", 3.0, "--seed", 4)
    assert run(source, target, "-m", tiny_llama_dir, "-n", 20, "--no-packed", "--quiet", *settings) == 0
    sampling = {"do_sample": True, "temperature": 3.0, "seed": 5}
    with ls.load(tiny_llama_dir) as streamed:
        requests = [ls.GenerationRequest(prompt="hello", max_new_tokens=20, **own) for own in (sampling, {})]
        expected = ls.generate_many(streamed, requests, packed=False)
    results = results_of(target)
    assert [results[row]["text"] for row in (1, 2)] == [result.text for result in expected]


def test_a_system_message_that_no_row_can_take_is_refused_before_any_row(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = write_lines(tmp_path / "in.jsonl", {"prompt": "hello"}), tmp_path / "out.jsonl"
    assert run(source, target, "-m", tiny_llama_dir, "--system", "Be brief.") == 2
    assert "--system needs --chat" in capsys.readouterr().err
    model = shutil.copytree(tiny_llama_dir, tmp_path / "model")
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    template = "{% for turn in messages if turn.role != 'system' %}{{ turn.content }}{% endfor %}"
    (model / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "chat_template": template}))
    (model / "chat_template.jinja").write_text(template)
    assert run(source, target, "-m", model, "--chat", "--system", "Be brief.") == 2
    assert "ignores the system message" in capsys.readouterr().err
    assert results_of(target) == {}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"messages": CHAT, "prompt": "x"},
            "one of prompt, messages and ids; this one has prompt and messages",
        ),
        ({"messages": CHAT, "ids": [3]}, "this one has messages and ids"),
        ({"messages": "hello"}, "must be a list of turns"),
        ({"messages": []}, "must be a list of turns"),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
            "only text can be read; got 'audio'",
        ),
        ({"chat": CHAT}, "a row needs a prompt, messages or ids"),
    ],
)
def test_a_row_with_a_wrong_conversation_gets_an_error_that_says_so(
    row: dict[str, Any], message: str, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    source, target = write_lines(tmp_path / "in.jsonl", row, {"messages": CHAT}), tmp_path / "out.jsonl"
    assert run(source, target, "-m", tiny_llama_dir, "-n", 2, "--quiet") == 1
    results = results_of(target)
    assert message in results[1]["error"]
    assert "text" in results[2], "the other row is answered"
