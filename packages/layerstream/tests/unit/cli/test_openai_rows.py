"""Rows of OpenAI's batches in `layerstream batch`: their shape, their settings, what is refused, resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kit.job_files import records_of
from transformers import AutoTokenizer

import layerstream as ls
from layerstream.cli.app import main
from layerstream.uses.batching.stop_texts import before_stop

pytestmark = pytest.mark.usefixtures("quiet_terminal")
HELLO = [{"role": "user", "content": "hello"}]
CHAT_URL, COMPLETION_URL = "/v1/chat/completions", "/v1/completions"


def chat_row(custom_id: str, **body: Any) -> dict[str, Any]:
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": CHAT_URL,
        "body": {"model": "any", "messages": HELLO, **body},
    }


def text_row(custom_id: str, **body: Any) -> dict[str, Any]:
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": COMPLETION_URL,
        "body": {"model": "any", "prompt": "hello", **body},
    }


class Job:
    """A job in a folder: answers rows with the tiny model."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.source, self.target, self._model = folder / "in.jsonl", folder / "out.jsonl", model

    def run(self, rows: list[Any], *options: object, status: int = 0) -> dict[Any, dict[str, Any]]:
        """Return the results by their id."""
        self.source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        files = [str(self.source), str(self.target)]
        given = ["-m", str(self._model), "--budget", "min", "--quiet", *map(str, options)]
        assert main(["batch", *files, *given]) == status
        results = records_of(self.target)[1:]
        assert len({result["row"] for result in results}) == len(results), "a row has two results"
        return {result["id"]: result for result in results}


@pytest.fixture
def job(tmp_path: Path, tiny_llama_dir: Path) -> Job:
    return Job(tmp_path, tiny_llama_dir)


def answers_to(model: Path, *requests: ls.GenerationRequest) -> list[ls.GenerationResult]:
    with ls.load(model, budget="min") as streamed:
        return ls.generate_many(streamed, requests, packed=False)


def body_of(result: dict[str, Any]) -> dict[str, Any]:
    assert result["error"] is None
    assert result["response"]["status_code"] == 200
    body: dict[str, Any] = result["response"]["body"]
    return body


def text_of(result: dict[str, Any]) -> str:
    (choice,) = body_of(result)["choices"]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


def test_results_have_openais_shape_and_the_librarys_answers(job: Job, tiny_llama_dir: Path) -> None:
    results = job.run(
        [chat_row("a", max_tokens=6), text_row("b", max_tokens=7), {"prompt": "hello", "max_new_tokens": 7}],
        "--no-packed",
    )
    chat, text = answers_to(
        tiny_llama_dir,
        ls.GenerationRequest(messages=HELLO, max_new_tokens=6),
        ls.GenerationRequest(prompt="hello", max_new_tokens=7),
    )
    assert results["a"]["custom_id"] == "a"
    body = body_of(results["a"])
    assert type(body.pop("created")) is int and body.pop("id").startswith("chatcmpl-")
    assert body == {
        "object": "chat.completion",
        "model": tiny_llama_dir.name,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": chat.text, "refusal": None},
                "logprobs": None,
                "finish_reason": chat.finish_reason,
            }
        ],
        "usage": {
            "prompt_tokens": chat.prompt_tokens,
            "completion_tokens": len(chat.tokens),
            "total_tokens": chat.prompt_tokens + len(chat.tokens),
        },
    }
    body = body_of(results["b"])
    assert body["object"] == "text_completion" and body["id"].startswith("cmpl-")
    assert body["choices"] == [
        {"index": 0, "text": text.text, "logprobs": None, "finish_reason": text.finish_reason}
    ]
    assert results[3]["text"] == text.text, "the house's own rows stand beside them"
    assert "response" not in results[3]


def test_every_prompt_that_is_one_text_is_read(job: Job, tiny_llama_dir: Path) -> None:
    tokens = AutoTokenizer.from_pretrained(tiny_llama_dir)("hello")["input_ids"]
    developer = [{"role": "developer", "content": "Be brief."}, *HELLO]
    parts = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    results = job.run(
        [
            text_row("text", prompt="hello"),
            text_row("list", prompt=["hello"]),
            text_row("tokens", prompt=tokens),
            chat_row("chat"),
            chat_row("parts", messages=parts),
            chat_row("developer", messages=developer),
            chat_row("system", messages=[{**developer[0], "role": "system"}, *HELLO]),
        ],
        *("-n", 4, "--no-packed", "--chat"),
    )
    text = text_of(results["text"])
    assert text == text_of(results["list"]) == text_of(results["tokens"]) != text_of(results["chat"])
    assert text_of(results["chat"]) == text_of(results["parts"])
    assert text_of(results["developer"]) == text_of(results["system"]) != text_of(results["chat"])


def test_the_stop_text_is_left_out(job: Job, tiny_llama_dir: Path) -> None:
    (whole,) = answers_to(tiny_llama_dir, ls.GenerationRequest(prompt="hello", max_new_tokens=12))
    assert whole.text is not None
    stop = whole.text[4:6]
    results = job.run([text_row("one", stop=stop), text_row("two", stop=["never", stop])], "-n", 12)
    for result in results.values():
        assert text_of(result) == whole.text[: whole.text.index(stop)]
        assert body_of(result)["choices"][0]["finish_reason"] == "stop"


def test_an_answer_is_cut_before_the_first_stop_text() -> None:
    assert before_stop("one two three", ("three", "two")) == "one "
    assert before_stop("one", ()) == before_stop("one", ("x",)) == "one"


def test_the_settings_of_a_row_are_honoured(job: Job, tiny_llama_dir: Path) -> None:
    greedy = {"temperature": 0, "top_p": 0.5, "seed": 3}
    sampled = {"temperature": 1.9, "top_p": 0.9, "seed": 3}
    results = job.run(
        [
            text_row("plain"),
            text_row("greedy", **greedy),
            text_row("sampled", **sampled),
            text_row("again", **sampled),
            text_row("top_p", top_p=1.0, seed=5),
            text_row("short", max_completion_tokens=2, max_tokens=9),
            text_row("null", temperature=None, max_tokens=None, stop=None, n=None, logprobs=None),
        ],
        *("-n", 12, "--no-packed"),
    )
    expected, nucleus = answers_to(
        tiny_llama_dir,
        ls.GenerationRequest(
            prompt="hello",
            max_new_tokens=12,
            do_sample=True,
            temperature=1.9,
            seed=3,
            options={"top_p": 0.9},
        ),
        ls.GenerationRequest(
            prompt="hello", max_new_tokens=12, do_sample=True, seed=5, options={"top_p": 1.0}
        ),
    )
    plain = text_of(results["plain"])
    assert text_of(results["greedy"]) == text_of(results["null"]) == plain
    assert text_of(results["sampled"]) == text_of(results["again"]) == expected.text != plain
    assert text_of(results["top_p"]) == nucleus.text
    assert body_of(results["short"])["usage"]["completion_tokens"] == 2


def test_the_jobs_own_temperature_counts_for_rows_without_one(job: Job, tiny_llama_dir: Path) -> None:
    rows = [text_row("top_p", top_p=0.9, seed=3), text_row("greedy", temperature=0)]
    results = job.run(rows, "-n", 12, "--no-packed", "--temperature", 1.9)
    settings: dict[str, Any] = {"do_sample": True, "temperature": 1.9, "seed": 3, "options": {"top_p": 0.9}}
    sampled, greedy = answers_to(
        tiny_llama_dir,
        ls.GenerationRequest(prompt="hello", max_new_tokens=12, **settings),
        ls.GenerationRequest(prompt="hello", max_new_tokens=12),
    )
    assert text_of(results["top_p"]) == sampled.text
    assert text_of(results["greedy"]) == greedy.text


def test_fields_that_leave_the_answer_as_it_is_are_accepted(job: Job) -> None:
    neutral = {
        "n": 1,
        "stream": False,
        "logprobs": False,
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "user": "someone",
        "metadata": {"a": "b"},
        "service_tier": "auto",
    }
    results = job.run([chat_row("a", **neutral), chat_row("b")], "-n", 4, "--no-packed")
    assert text_of(results["a"]) == text_of(results["b"])


@pytest.mark.parametrize(
    ("row", "param", "code"),
    [
        (chat_row("x", n=2), "n", "unsupported_parameter"),
        (chat_row("x", tools=[{"type": "function"}]), "tools", "unsupported_parameter"),
        (chat_row("x", logprobs=True), "logprobs", "unsupported_parameter"),
        (text_row("x", logprobs=0), "logprobs", "unsupported_parameter"),
        (text_row("x", echo=True), "echo", "unsupported_parameter"),
        (
            chat_row("x", response_format={"type": "json_object"}),
            "response_format",
            "unsupported_parameter",
        ),
        (chat_row("x", stream=True), "stream", "unsupported_parameter"),
        (chat_row("x", logit_bias={"5": 1}), "logit_bias", "unsupported_parameter"),
        (chat_row("x", top_k=3), "top_k", "unknown_parameter"),
        (chat_row("x", prompt="hello"), "prompt", "unknown_parameter"),
        (chat_row("x", max_tokens=0), "max_tokens", "invalid_value"),
        (chat_row("x", max_tokens=True), "max_tokens", "invalid_value"),
        (chat_row("x", temperature=2.1), "temperature", "invalid_value"),
        (chat_row("x", temperature=float("nan")), "temperature", "invalid_value"),
        (chat_row("x", temperature="hot"), "temperature", "invalid_value"),
        (chat_row("x", top_p=-1), "top_p", "invalid_value"),
        (chat_row("x", seed=-1), "seed", "invalid_value"),
        (chat_row("x", stop=5), "stop", "invalid_value"),
        (chat_row("x", stop=["a", ""]), "stop", "invalid_value"),
        (text_row("x", prompt=["one", "two"]), "prompt", "invalid_value"),
        (text_row("x", prompt=""), "prompt", "invalid_value"),
        (text_row("x", prompt=[5000]), None, "invalid_value"),
        (chat_row("x", messages=[]), None, "invalid_value"),
        ({**chat_row("x"), "method": "GET"}, "method", "invalid_value"),
        ({**chat_row("x"), "url": "/v1/embeddings"}, "url", "invalid_value"),
        ({**chat_row("x"), "url": ["/v1/completions"]}, "url", "invalid_value"),
        ({**chat_row("x"), "body": 5}, "body", "invalid_value"),
        ({**chat_row("x"), "id": 5}, "id", "invalid_value"),
        (chat_row(""), "custom_id", "invalid_value"),
        ({"body": {}}, "custom_id", "invalid_value"),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value),
)
def test_a_row_that_cannot_be_answered_as_asked_gets_an_error_that_names_the_field(
    row: dict[str, Any], param: str | None, code: str, job: Job
) -> None:
    (result,) = job.run([row], status=1).values()
    assert list(result) == ["row", "id", "custom_id", "response", "error", "digest"]
    assert result["custom_id"] == row.get("custom_id")
    assert result["error"]["code"] == code
    response = result["response"]
    assert response["status_code"] == 400
    error = response["body"]["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert error["message"] == result["error"]["message"]
    assert param is None or param in error["message"]


def test_a_row_that_fails_while_it_is_answered_has_no_response(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(streamed: object, requests: list[Any], *, on_result: Any, **_: object) -> None:
        for index, request in enumerate(requests):
            error = ArithmeticError("no number")
            on_result(ls.GenerationResult(index=index, request=request, prompt_tokens=5, error=error))

    monkeypatch.setattr("layerstream.cli.backend.generate_many", fail, raising=False)
    (result,) = job.run([chat_row("x")], status=1).values()
    assert result["response"] is None
    assert result["error"] == {"code": "server_error", "message": "ArithmeticError: no number"}


def without_times(results: dict[Any, dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    for result in results.values():
        if result["error"] is None:
            del result["response"]["body"]["created"]
    return results


def test_started_again_it_answers_the_remaining_rows(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [chat_row("a", max_tokens=4), chat_row("b", n=2), text_row("c", max_tokens=5)]
    whole = without_times(job.run(rows, "--no-packed", status=1))
    lines = job.target.read_bytes().splitlines(keepends=True)
    # the refused row, one answer, and a part of the other, as after a kill
    job.target.write_bytes(b"".join(lines[:3]) + lines[3][:200])
    assert without_times(job.run(rows, "--no-packed", status=1)) == whole
    assert job.target.read_bytes().startswith(b"".join(lines[:3]))
    done = job.target.read_bytes()
    assert main(["batch", str(job.source), str(job.target), "-m", str(job._model), "--no-packed"]) == 1
    assert job.target.read_bytes() == done
    assert "row 2 (id b): n=2 is not supported: leave n out\n" in capsys.readouterr().err


def test_a_repaired_row_is_answered_and_the_others_stay(job: Job) -> None:
    rows = [chat_row("a", max_tokens=4), chat_row("b", n=2, max_tokens=4)]
    first = job.run(rows, status=1)
    second = job.run([chat_row("new", max_tokens=2), rows[0], chat_row("b", max_tokens=4)])
    assert second["a"]["response"] == first["a"]["response"]
    assert (second["a"]["row"], second["a"]["id"]) == (2, "a")
    assert text_of(second["b"]) == text_of(second["a"])
    assert set(second) == {"new", "a", "b"}
