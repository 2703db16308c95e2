from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_model import save_tiny_model

import layerstream_compare.variants.registry as registry_module
from layerstream_compare.case import Case
from layerstream_compare.variants import bnb, resident, streamed
from layerstream_compare.variants.prompts import Prompt, build_prompt, resize
from layerstream_compare.variants.registry import (
    Variant,
    VariantUnavailableError,
    find_variant,
    has_package,
    list_variants,
)
from layerstream_compare.worker.generation import generate_greedily
from layerstream_compare.worker.operator_trace import kernel_facts

AVAILABLE_ATTENTION = [
    variant.name
    for variant in list_variants("attention")
    if variant.availability() is None and variant.name != "flex"
]


def _ids(loaded, case: Case, tokens: int = 6) -> tuple[int, ...]:
    return generate_greedily(
        loaded, build_prompt(loaded.tokenizer, case), tokens, lambda index, token: None
    ).token_ids


def test_the_registry_is_read_without_torch():
    code = "import sys; import layerstream_compare.variants.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_are_unique_within_a_kind_and_every_module_is_there():
    folder = Path(registry_module.__file__).parent
    for kind in ("weights", "attention"):
        names = [variant.name for variant in list_variants(kind)]
        assert len(names) == len(set(names))
    for variant in list_variants("weights"):
        tree = ast.parse((folder / f"{variant.module}.py").read_text(encoding="utf-8"))
        assert "load" in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def test_an_unknown_variant_is_rejected_with_the_valid_names():
    message = r"no weights variant is called 'bnb-nf5'; choose one of streamed, resident, .*bnb-nf4"
    with pytest.raises(ValueError, match=message):
        find_variant("bnb-nf5", "weights")


def test_a_missing_package_is_reported_with_what_installs_it():
    variant = Variant(
        name="x", kind="weights", title="", packages=("no_such_package",), install="pip install such"
    )
    assert variant.availability() == (
        "x needs the package no_such_package, which is not installed: pip install such"
    )


def test_every_advice_works_in_a_clone_and_with_a_wheel_alike():
    for variant in list_variants():
        if variant.packages or variant.distribution:
            assert variant.install, variant.name
        # this package need not be on an index: its extras can then not be asked for by its name
        assert "layerstream" not in variant.install


def test_nobody_is_told_to_install_a_package_that_could_not_run_here(monkeypatch):
    monkeypatch.setattr(registry_module, "has_accelerator", lambda: False)
    monkeypatch.setattr(registry_module, "driver_vendors", lambda: ())
    for name in ("flash-attention-2", "hub-flash-attention-3"):
        assert find_variant(name, "attention").availability() == (
            f"{name} has no kernel for a CPU, and no accelerator was found"
        )
    monkeypatch.setattr(registry_module, "has_accelerator", lambda: True)
    monkeypatch.setattr(registry_module, "driver_vendors", lambda: (registry_module.AMD,))
    assert find_variant("flash-attention-3", "attention").availability() == (
        "flash-attention-3 has kernels for NVIDIA GPUs only"
    )


def test_a_variant_that_needs_an_accelerator_is_available_only_with_one(monkeypatch):
    cudnn = find_variant("sdpa-cudnn", "attention")
    monkeypatch.setattr(registry_module, "has_accelerator", lambda: False)
    assert cudnn.availability() == "sdpa-cudnn has no kernel for a CPU, and no accelerator was found"
    monkeypatch.setattr(registry_module, "has_accelerator", lambda: True)
    assert cudnn.availability() is None


def test_a_gpu_of_another_vendor_or_a_torch_for_cpus_is_the_reason(monkeypatch):
    cudnn, efficient = (find_variant(f"sdpa-{name}", "attention") for name in ("cudnn", "efficient"))
    monkeypatch.setattr(registry_module, "driver_vendors", lambda: (registry_module.AMD,))
    monkeypatch.setattr(registry_module, "installed_version", lambda name: "2.13.0+rocm7.2")
    assert cudnn.availability() == "sdpa-cudnn has kernels for NVIDIA GPUs only"
    assert efficient.availability() is None
    monkeypatch.setattr(registry_module, "installed_version", lambda name: "2.13.0+cpu")
    assert efficient.availability() == (
        "sdpa-efficient has no kernel for a CPU, and torch 2.13.0+cpu is built for CPUs only"
    )


@pytest.mark.parametrize(
    ("generation", "module", "distribution"),
    [
        (2, "flash_attn/__init__.py", "flash-attn"),
        (3, "flash_attn_interface.py", "flash-attn-3"),
        (4, "flash_attn/cute/__init__.py", "flash-attn-4"),
    ],
)
def test_flash_attention_is_available_only_from_the_distribution_of_its_generation(
    generation, module, distribution, tmp_path, monkeypatch
):
    monkeypatch.setattr(registry_module, "has_accelerator", lambda: True)
    monkeypatch.syspath_prepend(tmp_path)
    flash = find_variant(f"flash-attention-{generation}", "attention")
    needs = f"flash-attention-{generation} needs the package {distribution}, which is not installed: "
    assert flash.availability() == needs + flash.install
    (tmp_path / module).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / module).touch()
    # another generation may have brought the module
    assert flash.availability() == needs + flash.install
    metadata = tmp_path / f"{distribution.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    assert flash.availability() is None


def test_a_dotted_package_is_found_without_importing_its_parent():
    assert has_package("email.mime")
    assert not has_package("email.no_such_part")
    assert not has_package("no_such_package.part")


def test_missing_cpu_flags_are_reported_but_never_a_reason(monkeypatch):
    monkeypatch.setattr(registry_module, "has_accelerator", lambda: False)
    nf4 = find_variant("bnb-nf4", "weights")
    assert nf4.missing_cpu_flags(frozenset({"avx512f"})) == ("avx512_bf16",)
    assert nf4.availability() is None


def test_streamed_and_resident_give_the_same_tokens_and_margins(tiny_model):
    case = Case(model=tiny_model, variant="resident", prompt="Hello", budget="min")
    plain = resident.load(case)
    with_pipeline = generate_greedily(
        plain, build_prompt(plain.tokenizer, case), 12, lambda index, token: None
    )
    assert plain.facts()["generated_by"] == 'pipeline("text-generation")'
    loaded = streamed.load(case.with_changes(variant="streamed"))
    try:
        with_streaming = generate_greedily(
            loaded, build_prompt(loaded.tokenizer, case), 12, lambda index, token: None
        )
        assert loaded.facts()["report"]["bytes_read"] > 0
    finally:
        loaded.close()
    assert with_streaming.token_ids == with_pipeline.token_ids
    assert with_streaming.margins == with_pipeline.margins


@pytest.mark.parametrize("chat", [True, False])
def test_the_pipeline_reads_the_same_prompt_as_the_other_variants(tiny_model, chat):
    case = Case(model=tiny_model, variant="resident", prompt="Hello", chat=chat)
    loaded = resident.load(case)
    prompt = build_prompt(loaded.tokenizer, case)
    output = loaded.generate(
        prompt_ids=prompt.token_ids, messages=prompt.messages, max_new_tokens=2, do_sample=False
    )
    assert torch.equal(output[:, : prompt.num_tokens], prompt.token_ids)


@pytest.mark.parametrize("variant", ["bnb-int8", "bnb-nf4", "bnb-nf4-dq", "bnb-fp4", "bnb-fp4-dq"])
def test_bitsandbytes_runs_its_own_kernels_and_leaves_the_edges_unquantized(tiny_model, variant):
    case = Case(model=tiny_model, variant=variant, prompt="Hello", device="cpu")
    loaded = bnb.load(case)
    assert len(_ids(loaded, case)) > 0
    facts = loaded.facts()
    assert facts["unquantized"] == ["model.embed_tokens", "lm_head"]
    assert facts["dtype"] == "float16"
    operators = kernel_facts(loaded, torch.tensor([[5, 6, 7]]))["prefill_operators"]
    assert any("bitsandbytes" in name for name in operators)


def test_a_shape_that_the_4_bit_kernel_does_not_support_is_unavailable_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(bnb, "has_avx512bf16", lambda: True)
    model = str(save_tiny_model(tmp_path, keys=1))
    with pytest.raises(
        VariantUnavailableError, match=r"k_proj is 16 x 64, and the 4-bit kernel needs multiples of 32 x 64"
    ):
        bnb.load(Case(model=model, variant="bnb-nf4", device="cpu"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_torchao_gives_finite_logits_in_every_dtype(tiny_model, dtype):
    pytest.importorskip("torchao")
    from layerstream_compare.variants import torchao_int8  # noqa: PLC0415  an optional extra

    case = Case(model=tiny_model, variant="torchao-int8", prompt="Hello", dtype=dtype, device="cpu")
    loaded = torchao_int8.load(case)
    assert len(_ids(loaded, case)) > 0
    assert loaded.facts()["unquantized"] == ["model.embed_tokens", "lm_head"]


@pytest.mark.parametrize("bits", [2, 3])
def test_autoround_runs_packed_and_cleans_up(tiny_model, bits):
    pytest.importorskip("auto_round")
    from layerstream_compare.variants import autoround  # noqa: PLC0415  an optional extra

    case = Case(model=tiny_model, variant=f"autoround-int{bits}", prompt="Hello", device="cpu")
    loaded = autoround.load(case)
    assert len(_ids(loaded, case)) > 0
    folder = Path(loaded.model.config._name_or_path)
    assert folder.exists()
    loaded.close()
    assert not folder.exists()


@pytest.mark.parametrize("attention", AVAILABLE_ATTENTION)
def test_every_available_attention_runs_with_the_requested_kernel(tiny_model, attention):
    case = Case(model=tiny_model, variant="resident", attention=attention, prompt="Hello", dtype="bfloat16")
    loaded = resident.load(case)
    assert len(_ids(loaded, case)) > 0
    kernel = kernel_facts(loaded, torch.tensor([[5, 6, 7]]))["attention_kernel"]
    if attention in ("eager", "sdpa-math"):
        assert "attention" not in kernel
    if attention == "sdpa-flash":
        assert "flash_attention" in kernel


def test_a_prompt_is_repeated_and_cut_inside_its_template(tiny_model):
    case = Case(model=tiny_model, variant="resident", prompt="abc")
    tokenizer = resident.load(case).tokenizer
    original = build_prompt(tokenizer, case)
    longer = build_prompt(tokenizer, case.with_changes(prompt_tokens=original.num_tokens + 4))
    assert longer.messages is None
    assert tokenizer.decode(longer.token_ids[0]) == "[user] abcabca\n> "


@pytest.mark.parametrize(
    ("token_ids", "content", "num_tokens", "expected"),
    [
        ([9, 1, 2, 8], [1, 2], 7, [9, 1, 2, 1, 2, 1, 8]),
        ([9, 1, 2, 8], [1, 2], 3, [9, 1, 8]),
        ([9, 1, 2, 8], [1, 2], 2, [9, 1]),
        ([9, 1, 2, 8], [3], 6, [9, 1, 2, 8, 9, 1]),
        ([1], [], 3, [1, 1, 1]),
    ],
)
def test_a_prompt_has_the_requested_length(token_ids, content, num_tokens, expected):
    assert resize(token_ids, content, num_tokens) == expected


def test_a_prompt_keeps_its_tokens_without_a_requested_length(tiny_model):
    case = Case(model=tiny_model, variant="resident", prompt="abc", chat=False)
    prompt = build_prompt(resident.load(case).tokenizer, case)
    assert isinstance(prompt, Prompt)
    assert (prompt.num_tokens, prompt.messages) == (3, "abc")
