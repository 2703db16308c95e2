"""Adapters that cannot be used: one clear error each, and nothing is left behind."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from kit.adapters import IGNORED_WARNINGS, KINDS, save_adapter
from kit.compare import reference
from kit.families import save_tiny

import layerstream as ls

pytestmark = [pytest.mark.filterwarnings(text) for text in IGNORED_WARNINGS]

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return save_adapter(reference(base), KINDS["lora"], tmp_path / "adapter")


def without_config(path: Path) -> None:
    (path / "adapter_config.json").unlink()


def without_weights(path: Path) -> None:
    (path / WEIGHTS).unlink()


def cut_short(path: Path) -> None:
    (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:-100])


def configured(**settings: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        file = path / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_config, "has no adapter_config.json: give the directory"),
        (without_weights, "cannot be put on this LlamaForCausalLM"),
        (cut_short, "cannot be put on this LlamaForCausalLM: .* is it complete"),
        (configured(peft_type="TELEPATHY"), "cannot use the adapter_config.json .*TELEPATHY"),
        (configured(peft_type="XLORA"), "is of type XLORA, .* PeftModel.from_pretrained"),
        (configured(alora_invocation_tokens=[5]), "is of type aLoRA"),
        (configured(r=2), "size mismatch .* is it complete, and for this model"),
        (
            configured(target_modules=["q_proj"]),
            "holds weights that the model has no place for: .* for another model",
        ),
        (configured(target_modules=["nothing"]), "Target modules .*nothing.* not found"),
        (configured(use_dora=True), "lacks .*lora_magnitude_vector"),
    ],
)
def test_a_bad_adapter_is_refused_with_its_path(
    damage: Callable[[Path], None], message: str, base: Path, adapter: Path
) -> None:
    damage(adapter)
    with pytest.raises((ls.AdapterError, ls.CheckpointError), match=message) as caught:
        ls.load(base, adapter=adapter, budget="min", device="cpu")
    assert str(adapter) in str(caught.value)


def test_an_adapter_of_another_architecture_is_refused(adapter: Path, tmp_path: Path) -> None:
    other = save_tiny("gpt2", tmp_path / "gpt2")
    with pytest.raises(ls.AdapterError, match=r"Target modules .* not found"):
        ls.load(other, adapter=adapter, budget="min", device="cpu")


def test_an_adapter_of_a_deeper_model_is_refused(adapter: Path, tmp_path: Path) -> None:
    shallow = save_tiny("llama_tied", tmp_path / "shallow")
    with pytest.raises(
        ls.AdapterError, match=r"holds weights that the model has no place for: .*layers\.4\."
    ):
        ls.load(shallow, adapter=adapter, budget="min", device="cpu")


def test_adapters_of_different_types_are_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    other = save_adapter(reference(base), KINDS["ia3"], tmp_path / "ia3")
    with pytest.raises(ls.AdapterError, match=r"different peft types"):
        ls.load(base, adapter={"one": adapter, "two": other}, budget="min", device="cpu")


def test_weights_that_peft_would_compute_anew_are_refused(base: Path, adapter: Path) -> None:
    configured(init_lora_weights="pissa")(adapter)
    with pytest.raises(ls.AdapterError, match=r"computes from the model's own, .* Convert it to plain LoRA"):
        ls.load(base, adapter=adapter, budget="min", device="cpu")


@pytest.mark.parametrize("path", ["./not/here", "/not/here"])
def test_a_path_that_does_not_exist_is_named(path: str, base: Path) -> None:
    with pytest.raises(ls.CheckpointNotFoundError, match=rf"there is no directory {path} with an adapter"):
        ls.load(base, adapter=path, budget="min", device="cpu")


def test_a_hub_id_without_a_network_is_named(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ls.CheckpointNotFoundError, match=r"someone/adapter"):
        ls.load(base, adapter="someone/adapter", budget="min", device="cpu")


@pytest.mark.parametrize("name", ["", "a.b", "base"])
def test_a_name_that_cannot_be_one_is_refused(name: str, base: Path, adapter: Path) -> None:
    with pytest.raises(ls.PlanError, match=r"an adapter cannot be called"):
        ls.plan(base, adapter={name: adapter}, device="cpu")


def test_without_peft_the_error_says_what_to_install(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ls.AdapterError, match=r"pip install 'layerstream\[adapters\]'"):
        ls.plan(base, adapter=adapter, device="cpu")


@pytest.mark.parametrize(
    ("named", "message"), [(True, "there is no adapter 'yours': .* gave 'mine'"), (False, "gave none")]
)
def test_an_adapter_that_is_not_there_cannot_become_active(
    named: bool, message: str, base: Path, adapter: Path
) -> None:
    given = {"mine": adapter} if named else None
    with (
        ls.load(base, adapter=given, budget="min", device="cpu") as streamed,
        pytest.raises(ls.AdapterError, match=message),
    ):
        streamed.set_adapter("yours")
