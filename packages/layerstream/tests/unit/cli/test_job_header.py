"""The header of a results file holds what can change a result, and nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import layerstream as ls
from layerstream.cli.job_header import JobHeader, describe_job
from layerstream.cli.prompt_rows import PromptDefaults


def header_of(model: Path, options: ls.LoadOptions | None = None, **defaults: Any) -> JobHeader:
    return describe_job(
        "batch", str(model), options or ls.LoadOptions(), PromptDefaults(**defaults).settings()
    )


def test_a_header_is_read_back_as_it_was_written(tiny_llama_dir: Path) -> None:
    header = header_of(tiny_llama_dir, temperature=0.5, stop=("a", "b"))
    line = header.to_line()
    assert line.startswith(b'{"layerstream_job": 1, ') and line.count(b"\n") == 1
    assert JobHeader.from_record(json.loads(line)) == header
    assert header.differences(header) == []


def test_it_names_model_settings_and_versions(tiny_llama_dir: Path) -> None:
    header = header_of(tiny_llama_dir, seed=3)
    assert header.model["name"] == str(tiny_llama_dir)
    assert set(header.model["fingerprint"]) >= {"config.json", "safetensors headers", "weights"}
    assert header.settings == {
        "max_new_tokens": 128,
        "temperature": None,
        "top_p": None,
        "seed": 3,
        "stop": None,
        "chat": False,
        "system": None,
        "packed": True,
        "dtype": "auto",
        "attn_implementation": None,
        "trust_remote_code": False,
        "subfolder": "",
        "variant": None,
        "config": None,
        "adapter": None,
        "allow_sliced_head": None,
        "draft": None,
        "exact_ties": None,
        "prefill_chunk_tokens": None,
    }
    assert header.versions == {
        "layerstream": ls.__version__,
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"budget": "1 GiB"},
        {"device": "cpu"},
        {"devices": ("cpu", "cpu")},
        {"revision": "main"},
        {"draft_tokens": 4, "draft_width": 2, "draft_acceptance": 0.5},
    ],
)
def test_where_a_model_runs_is_no_setting(changes: dict[str, Any], tiny_llama_dir: Path) -> None:
    assert header_of(tiny_llama_dir).differences(header_of(tiny_llama_dir, ls.LoadOptions(**changes))) == []
    assert header_of(tiny_llama_dir).differences(header_of(tiny_llama_dir, max_rows=3)) == []


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"dtype": "bfloat16"}, "dtype: auto -> bfloat16"),
        ({"attn_implementation": "eager"}, "attn_implementation: none -> eager"),
        ({"trust_remote_code": True}, "trust_remote_code: false -> true"),
        ({"allow_sliced_head": True}, "allow_sliced_head: none -> true"),
        ({"draft": "lookup"}, "draft: none -> lookup"),
        ({"exact_ties": False}, "exact_ties: none -> false"),
        (
            {"workload": ls.Workload(prefill_chunk_tokens=64, batch_size=9)},
            "prefill_chunk_tokens: none -> 64",
        ),
    ],
)
def test_how_a_model_computes_is_a_setting(
    changes: dict[str, Any], difference: str, tiny_llama_dir: Path
) -> None:
    now = header_of(tiny_llama_dir, ls.LoadOptions(**changes))
    assert header_of(tiny_llama_dir).differences(now) == [difference]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionsOfTomorrow(ls.LoadOptions):
    """Options that load may get: some say where the model comes from, the others what it is."""

    tones: dict[str, Path] | None = None


def test_an_adapter_is_told_by_its_files(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """The same files in another place are the same adapter."""
    for name, weights in (("first", b"1"), ("same", b"1"), ("other", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
        (tmp_path / name / "adapter_model.safetensors").write_bytes(weights)
    first, same, other = (
        header_of(tiny_llama_dir, ls.LoadOptions(adapter=tmp_path / name))
        for name in ("first", "same", "other")
    )
    assert first.differences(same) == []
    (difference,) = first.differences(other)
    assert difference.startswith("adapter: ")


def test_a_new_option_of_load_is_a_setting_and_a_token_is_never_written(tiny_llama_dir: Path) -> None:
    before = header_of(tiny_llama_dir)
    options = OptionsOfTomorrow(token="secret", cache_dir=Path("x"), tones={"tone": Path("warm")})
    now = header_of(tiny_llama_dir, options)
    assert before.differences(now) == ['tones: none -> {"tone": "warm"}']
    assert JobHeader.from_record(json.loads(now.to_line())).differences(now) == []
    assert b"secret" not in now.to_line()


def test_a_setting_that_only_one_side_knows_counts_as_not_given(tiny_llama_dir: Path) -> None:
    header = header_of(tiny_llama_dir)
    older = replace(
        header, settings={name: value for name, value in header.settings.items() if name != "seed"}
    )
    assert older.differences(header) == header.differences(older) == []
