"""`layerstream chat` over pipes and with a real tiny checkpoint, compared with the resident model."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import layerstream as ls
from layerstream.cli.app import main
from layerstream.cli.chat_answer import answer_in_chat
from layerstream.cli.workloads import workloads_for
from layerstream.errors import BudgetTooSmallError, PlanError

pytestmark = pytest.mark.usefixtures("quiet_terminal")


Chat = Callable[..., tuple[str, str]]
"""Runs a chat over a text that is piped in; returns stdout and stderr."""


@pytest.fixture
def chat(tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chat:
    def run(text: str, *options: object, model: Path = tiny_llama_dir, status: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        assert main(["chat", str(model), *map(str, options)]) == status, capsys.readouterr().err
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run


def resident_answer(directory: Path, messages: list[dict[str, str]], new_tokens: int, **settings: Any) -> str:
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    rows = model.generate(**inputs, max_new_tokens=new_tokens, **{"do_sample": False, **settings})
    return str(tokenizer.decode(rows[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize("options", [(), ("--draft", "lookup")], ids=["plain", "draft"])
def test_each_answer_is_the_resident_models_and_knows_the_turns_before(
    options: tuple[str, ...], chat: Chat, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    first = resident_answer(tiny_llama_dir, [user("hello")], 6)
    talk = [user("hello"), assistant(first), user("a\nb")]
    second = resident_answer(tiny_llama_dir, talk, 6)
    text = f"hello\n\na\\\nb\n/save {tmp_path / 'talk.json'}\n"
    out, err = chat(text, "-n", 6, "--budget", "min", *options)
    assert out == f"{first}\n{second}\n"
    assert "a context of 512 tokens, answers of up to 6" in err
    assert err.count(" tokens · ") == 2 and "the first after" in err
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert saved == {"messages": [*talk, assistant(second)]}


def test_over_pipes_there_are_no_escape_codes_and_quiet_prints_only_the_answers(
    chat: Chat, tiny_llama_dir: Path
) -> None:
    answer = resident_answer(tiny_llama_dir, [user("hello")], 4)
    out, err = chat("hello\n", "-n", 4)
    assert "\x1b" not in out + err
    assert chat("hello\n/system Be brief.\n/reset\n", "-n", 4, "-q") == (answer + "\n", "")


def test_system_reset_and_exit(chat: Chat, tiny_llama_dir: Path) -> None:
    brief, kind = ({"role": "system", "content": text} for text in ("Be brief.", "Be kind."))
    answers = [
        resident_answer(tiny_llama_dir, [*system, user("hello")], 5) for system in ([brief], [kind], [])
    ]
    assert len(set(answers)) == 3, "the system message makes no difference"
    text = "hello\n/reset\n/system Be kind.\nhello\n/reset\n/system\nhello\n/exit\nnever read\n"
    out, err = chat(text, "-n", 5, "--system", "Be brief.")
    assert out.splitlines() == answers
    assert "the system message is set" in err and "there is no system message now" in err


def test_sampling_repeats_with_a_seed(chat: Chat, tiny_llama_dir: Path) -> None:
    sampled = ("-n", 8, "-q", "--temperature", 3.0, "--top-p", 0.9, "--seed", 4)
    torch.manual_seed(4)
    settings = {"do_sample": True, "temperature": 3.0, "top_p": 0.9}
    expected = resident_answer(tiny_llama_dir, [user("hello")], 8, **settings)
    assert chat("hello\n", *sampled)[0] == expected + "\n"


def test_when_the_context_is_full_the_oldest_turns_are_left_out_with_one_line(
    chat: Chat, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    first = resident_answer(tiny_llama_dir, [user("hello")], 4)
    long = "x" * 60
    second = resident_answer(tiny_llama_dir, [user(long)], 4)
    text = f"hello\n{long}\n/save {tmp_path / 'talk.json'}\n"
    out, err = chat(text, "-n", 4, "--context-tokens", 80)
    assert out == f"{first}\n{second}\n"
    assert err.count("the context is full: the oldest turn is left out from here on\n") == 1
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert [message["content"] for message in saved["messages"]] == ["hello", first, long, second]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("x" * 100, ("--context-tokens", 50, "-n", 4), "too long: in the chat template it has 110 tokens"),
        ("/nonsense", (), "there is no command /nonsense"),
        ("/save", (), "/save needs the name of a file"),
        ("/save MODEL/config.json", (), "is there already"),
        ("", ("--context-tokens", 513), "more than the 512 tokens that this model can see"),
        ("", ("-n", 512), "--max-new-tokens 512 leaves no room"),
    ],
)
def test_a_mistake_over_a_pipe_is_one_error_line_and_status_2(
    text: str, options: tuple[object, ...], message: str, chat: Chat, tiny_llama_dir: Path
) -> None:
    _, err = chat(text.replace("MODEL", str(tiny_llama_dir)) + "\n", "-q", *options, status=2)
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize("text", [" /etc/passwd", "/etc/passwd", "/a\\\nb"])
def test_not_every_slash_begins_a_command(text: str, chat: Chat, tiny_llama_dir: Path) -> None:
    asked = text.replace("\\\n", "\n")
    assert chat(text + "\n", "-n", 3, "-q")[0] == resident_answer(tiny_llama_dir, [user(asked)], 3) + "\n"


def test_a_checkpoint_without_a_chat_template_is_refused_before_its_weights_are_read(
    chat: Chat, tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerstream.cli.backend.download_weights", pytest.fail, raising=False)
    model = Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = None
    for path in model.glob("chat_template*"):
        path.unlink()
    tokenizer.save_pretrained(model)
    _, err = chat("hello\n", "-q", model=model, status=2)
    assert err.startswith("error: this checkpoint's tokenizer has no chat template, which a chat needs")


@pytest.mark.parametrize("where", ["option", "command"])
def test_a_template_that_ignores_the_system_message_is_reported(
    where: str, chat: Chat, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = (
        "{% for turn in messages if turn.role != 'system' %}{{ turn.content }}{% endfor %}"
    )
    tokenizer.save_pretrained(model)
    options, text = (("--system", "Be kind."), "") if where == "option" else ((), "/system Be kind.\n")
    assert "ignores the system message" in chat(text, "-q", *options, model=model, status=2)[1]


def sizes(*arguments: Any, **limit: Any) -> list[tuple[int, int]]:
    workloads = workloads_for(*arguments, **limit)
    return [(workload.context_tokens, workload.new_tokens) for workload in workloads]


def test_the_context_is_what_model_and_user_allow() -> None:
    assert sizes(None, None, limit=None) == [(4096, 512), (2048, 512), (1024, 512)]
    assert sizes(None, None, limit=1500) == [(1500, 512), (1024, 512)]
    assert sizes(None, None, limit=512) == [(512, 256)]
    assert sizes(None, 1500, limit=None) == [(4096, 1500), (2048, 1500)]
    assert sizes(8000, None, limit=9000) == [(8000, 512)]
    assert sizes(2, 1, limit=None) == [(2, 1)]
    with pytest.raises(PlanError, match="in a context of 4096 tokens"):
        sizes(None, 4096, limit=8192)


def test_a_smaller_context_is_reserved_where_the_budget_has_no_room(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerstream.cli.workloads.CONTEXTS", (400, 200, 100))
    asked = []

    def load(model: str, options: Any, **_: Any) -> ls.StreamedModel:
        asked.append(options.workload.context_tokens)
        if asked[-1] > 200:
            raise BudgetTooSmallError("too small", needed_bytes=2, budget_bytes=1)
        return ls.load(model, budget="min", workload=options.workload)

    monkeypatch.setattr("layerstream.cli.backend.load_with", load, raising=False)
    assert "a context of 200 tokens" in chat("", "-n", 4)[1]
    assert asked == [400, 200]


@pytest.mark.parametrize("arguments", [["chat", "--help"], ["chat", "some/model", "--budget", "many"]])
def test_its_help_and_errors_load_no_model_library(arguments: list[str]) -> None:
    program = (
        "import sys; from layerstream.cli.app import main; main(sys.argv[1:]); "
        "sys.exit(bool({'torch', 'transformers', 'huggingface_hub', 'readline'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, *arguments]
    assert subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False).returncode == 0


class TestAnAnswer:
    """An answer that is ended, and the model afterwards."""

    @pytest.mark.parametrize("draft", [None, "lookup", "int8"])
    @pytest.mark.parametrize("budget", ["min", "160MiB"])
    def test_it_ends_at_the_next_unit_and_the_model_goes_on(
        self, budget: str, draft: str | None, tiny_llama_dir: Path
    ) -> None:
        with ls.load(tiny_llama_dir, budget=budget, draft=draft) as streamed:
            tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
            request = ls.GenerationRequest(prompt=tokenizer("hello")["input_ids"], max_new_tokens=12)
            pieces: list[str] = []
            tokens: list[int] = []

            def answer(most: int) -> Any:
                pieces.clear()
                tokens.clear()
                return answer_in_chat(
                    streamed,
                    tokenizer,
                    request,
                    write=pieces.append,
                    on_tokens=tokens.append,
                    is_stopped=lambda: sum(tokens) >= most,
                )

            whole = answer(100)
            assert (whole.is_stopped, whole.new_tokens) == (False, 12)
            cut = answer(3)
            assert cut.is_stopped and 3 <= cut.new_tokens < 12
            assert whole.text.startswith(cut.text) and cut.text == "".join(pieces)
            nothing = answer(0)
            assert (nothing.text, nothing.new_tokens, nothing.first_token_s) == ("", 0, None)
            assert answer(100).text == whole.text

    def test_it_leaves_no_hook_behind(self, tiny_llama_dir: Path) -> None:
        with ls.load(tiny_llama_dir, budget="min") as streamed:
            tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
            hooks = [len(module._forward_pre_hooks) for module in streamed.model.modules()]
            answer_in_chat(
                streamed,
                tokenizer,
                ls.GenerationRequest(prompt=[10], max_new_tokens=5),
                write=lambda _: None,
                on_tokens=lambda _: None,
                is_stopped=lambda: True,
            )
            assert [len(module._forward_pre_hooks) for module in streamed.model.modules()] == hooks
