"""`--adapter` on the command line, and adapters in the rows of a job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kit.adapters import IGNORED_WARNINGS, KINDS, save_adapter
from kit.compare import reference

import layerstream as ls
from layerstream.cli.app import main
from layerstream.cli.options import adapter_mapping
from layerstream.errors import PlanError

pytestmark = [pytest.mark.filterwarnings(text) for text in IGNORED_WARNINGS]


@pytest.fixture(scope="module")
def paths(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: save_adapter(reference(tiny_llama_dir), KINDS["lora"], folder / name, seed)
        for seed, name in enumerate(("one", "two"))
    }


def test_a_path_alone_is_the_default_adapter_and_several_have_names(tmp_path: Path) -> None:
    with_sign = tmp_path / "a=b"
    with_sign.mkdir()
    assert adapter_mapping(None) is None
    assert adapter_mapping(["x/y"]) == {"default": "x/y"}
    assert adapter_mapping([str(with_sign)]) == {"default": str(with_sign)}
    assert adapter_mapping(["a=x", "b=y=z"]) == {"a": "x", "b": "y=z"}


def test_two_adapters_without_names_are_refused() -> None:
    with pytest.raises(PlanError, match=r"two adapters are called 'default'.*NAME=PATH"):
        adapter_mapping(["x", "y"])


def test_plan_shows_the_line_of_the_adapters(
    tiny_llama_dir: Path, paths: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(tiny_llama_dir), "--adapter", str(paths["one"])]) == 0
    assert "    adapters " in capsys.readouterr().out


def test_rows_name_their_adapters(
    tiny_llama_dir: Path, paths: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = {"prompt": "The sea is", "max_new_tokens": 6}
    rows = [{**prompt, "adapter": name} for name in ("one", "two", "base")]
    rows += [prompt, {"prefix": "The sea", "suffixes": [" is"], "adapter": "two"}]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = [f"--adapter={name}={path}" for name, path in paths.items()]
    arguments = ["batch", str(source), str(target), "-m", str(tiny_llama_dir), "--budget", "min", "-q"]
    assert main([*arguments, "--no-packed", *named]) == 0, capsys.readouterr().err
    _, *lines = target.read_text().splitlines()
    results = {result["row"]: result for result in map(json.loads, lines)}
    with ls.load(tiny_llama_dir, adapter=paths, budget="min", device="cpu") as streamed:
        texts = [ls.generate_many(streamed, [ls.GenerationRequest(**row)])[0].text for row in rows[:4]]
        (scored,) = ls.score(streamed, [("The sea", [" is"], "two")])
    assert [results[number]["text"] for number in sorted(results)[:4]] == texts
    assert len(set(texts)) == 3
    assert texts[0] == texts[3]
    (last,) = (result for result in results.values() if "scores" in result)
    assert last["scores"][0]["sum"] == scored.scores[0].sum
