"""The options of `layerstream run` that say how to answer: stop texts, sampling, a system message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from layerstream.cli.app import main
from layerstream.cli.session import _HasStopText, encode_prompt
from layerstream.errors import PlanError

pytestmark = pytest.mark.usefixtures("quiet_terminal")


@pytest.fixture
def tokenizer(tiny_llama_dir: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_llama_dir)


def run(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> tuple[str, str]:
    assert main(["run", *map(str, arguments)]) == status, capsys.readouterr().err
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_the_answer_ends_before_the_stop_text_and_no_sweep_follows_it(
    tiny_llama_dir: Path, tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (tiny_llama_dir, "-p", "hello", "-n", 12, "--budget", "min")
    whole = run(capsys, *asked, "--quiet")[0].removesuffix("\n")
    stop = whole[4:7]
    assert run(capsys, *asked, "--stop", stop, "--stop", "never", "--quiet")[0] == whole[:4] + "\n"
    printed = json.loads(run(capsys, *asked, "--stop", stop, "--json")[0])
    assert printed["answer"]["text"] == whole[:4]
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    rows = model.generate(**tokenizer("hello", return_tensors="pt"), max_new_tokens=12, do_sample=False)
    until_stop = [
        length
        for length in range(1, 13)
        if stop in str(tokenizer.decode(rows[0][5 : 5 + length], skip_special_tokens=True))
    ]
    assert printed["answer"]["new_tokens"] == printed["report"]["sweeps"] == until_stop[0] < 12


def test_a_special_token_may_be_the_stop_text(
    tiny_llama_dir: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    criterion = _HasStopText(tokenizer, ("<unk>",), prompt_tokens=1)
    unknown = int(tokenizer.convert_tokens_to_ids("<unk>"))
    assert criterion(torch.tensor([[9, 10, unknown]]), None).tolist() == [True]
    assert criterion(torch.tensor([[unknown, 10, 11]]), None).tolist() == [False]


def test_a_stop_text_that_begins_in_the_prompt_does_not_count(
    tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (tiny_llama_dir, "-p", "hello", "-n", 5, "--quiet")
    whole, _ = run(capsys, *asked)
    assert run(capsys, *asked, "--stop", "o" + whole[0])[0] == whole


def test_an_answer_that_ends_within_a_stop_text_is_printed_whole(
    tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (tiny_llama_dir, "-p", "hello", "-n", 5, "--quiet")
    whole, _ = run(capsys, *asked)
    assert run(capsys, *asked, "--stop", whole[3:5] + "and more")[0] == whole


def test_top_p_samples_as_transformers_does(
    tiny_llama_dir: Path, tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("--temperature", 3.0, "--top-p", 0.8, "--seed", 4)
    out, _ = run(capsys, tiny_llama_dir, "-p", "hello", "-n", 8, "--quiet", *settings)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    torch.manual_seed(4)
    rows = model.generate(
        **tokenizer("hello", return_tensors="pt"),
        max_new_tokens=8,
        do_sample=True,
        temperature=3.0,
        top_p=0.8,
    )
    assert out == tokenizer.decode(rows[0][5:], skip_special_tokens=True) + "\n"


def test_top_p_alone_samples_too(tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = (tiny_llama_dir, "-p", "hello", "-n", 12, "--quiet")
    samples = {run(capsys, *asked, "--top-p", 1.0, "--seed", seed)[0] for seed in range(3)}
    assert len(samples) > 1


def test_a_system_message_stands_above_the_prompt(
    tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (tiny_llama_dir, "-p", "hello", "-n", 1, "--chat", "--json")
    printed = json.loads(run(capsys, *asked, "--system", "Be brief.")[0])
    assert printed["answer"]["prompt_tokens"] == len("[system] Be brief.\n[user] hello\n> ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--system", "Be brief."], "--system needs --chat"),
        (["--stop", ""], "--stop is empty"),
    ],
)
def test_an_option_that_cannot_be_used_is_one_error_line(
    arguments: list[str], message: str, tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, err = run(capsys, tiny_llama_dir, "-p", "hello", *arguments, status=2)
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    ("beginning", "message"),
    [
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}",
            "refuses these messages: no system here. It may take no system message: put it at the beginning",
        ),
        (
            "{% if messages[0].role == 'system' %}{% set messages = messages[1:] %}{% endif %}",
            "ignores the system message: put it at the beginning",
        ),
    ],
    ids=["refuses", "ignores"],
)
def test_a_template_without_a_system_message_is_reported(
    beginning: str, message: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer.chat_template = beginning + str(tokenizer.chat_template)
    assert encode_prompt(tokenizer, "hello", chat=True)
    with pytest.raises(PlanError, match=message):
        encode_prompt(tokenizer, "hello", chat=True, system="Be brief.")


def test_the_model_may_be_an_option_as_in_the_commands_for_files(
    tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("-p", "hello", "-n", 3, "--quiet")
    assert run(capsys, "--model", tiny_llama_dir, *asked) == run(capsys, tiny_llama_dir, *asked)
    _, error = run(capsys, tiny_llama_dir, "-m", "other", *asked, status=2)
    assert error == f"error: two models are given, {tiny_llama_dir} and --model other: give one\n"
