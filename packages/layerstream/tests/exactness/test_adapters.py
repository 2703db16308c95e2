"""Adapters give on a streamed model what they give on the plain one with peft, bit for bit.

The reference is transformers' model with the same files, put on by peft. Every test that runs a model streams
it at the least budget, some at one that keeps it resident too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.adapters import (
    IGNORED_WARNINGS,
    KINDS,
    bytes_of_adapters,
    experts_lora,
    save_adapter,
    with_adapter,
    with_adapters,
)
from kit.budgets import PLENTY, WORKLOAD
from kit.compare import assert_same, bits, greedy, logits, reference
from kit.families import save_tiny
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from tqdm import tqdm
from transformers import PreTrainedModel

import layerstream as ls
from layerstream import GenerationRequest

pytestmark = [pytest.mark.filterwarnings(text) for text in IGNORED_WARNINGS]

NAMES = ("first", "second", "third")
PROMPTS = ((5, 6, 7, 8, 9), (11, 12, 13, 14, 15), (40, 41, 42, 43, 44, 45, 46))
NEW_TOKENS = 5
LENGTH: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "options": {"min_new_tokens": NEW_TOKENS}}
"""No answer ends before the others, so that packed answers can be compared with rows of the plain model."""


CASES = [
    *(("llama", kind, ("float32", "bfloat16")[index % 2], "min") for index, kind in enumerate(KINDS)),
    ("llama", "dora", "float32", PLENTY),
    ("llama", "modules_to_save", "float32", PLENTY),
    ("mixtral", "experts", "bfloat16", "min"),
    ("qwen3_moe", "experts", "float32", "min"),
    ("llama_tied", "embedding and head", "bfloat16", "min"),
    ("gpt2", "lora", "float32", "min"),
    ("falcon_new_decoder", "lora", "bfloat16", PLENTY),
    ("gemma2", "lora", "bfloat16", "min"),
    ("opt", "ia3", "float32", "min"),
    ("phi", "dora", "bfloat16", "min"),
    ("bloom", "lora", "bfloat16", "min"),
]


def load(
    base: Path, adapter: Path | dict[str, Path], budget: str | int = "min", replicas: int = 1
) -> ls.StreamedModel:
    """Load `base` with adapters on the CPU."""
    return ls.load(base, adapter=adapter, budget=budget, devices=["cpu"] * replicas, workload=WORKLOAD)


def configure(kind: str) -> Callable[[PreTrainedModel], PeftConfig]:
    """Return what configures an adapter of `kind`."""
    return experts_lora if kind == "experts" else KINDS[kind]


def ledger_bytes(plan: ls.PlacementPlan) -> int:
    """Return the bytes of the ledger's line for adapters."""
    return sum(line.num_bytes for line in plan.ledger.lines if line.kind is ls.LedgerKind.ADAPTERS)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny Llama in fp32, where kernels also depend on `requires_grad`."""
    return save_tiny("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def paths(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return three LoRAs of different shapes: plain, with DoRA and other ranks, and with a whole head."""
    folder = tmp_path_factory.mktemp("adapters")
    kinds = ("lora", "dora", "modules_to_save")
    return {
        name: save_adapter(reference(base), KINDS[kind], folder / name, seed)
        for seed, (name, kind) in enumerate(zip(NAMES, kinds, strict=True))
    }


@pytest.fixture(scope="module")
def plain(base: Path, paths: dict[str, Path]) -> PeftModel:
    """Return the plain model with all three adapters."""
    return with_adapters(reference(base), paths)


@pytest.fixture(scope="module")
def opened(base: Path, paths: dict[str, Path]) -> Iterator[ls.StreamedModel]:
    """Return `base` with all three adapters, streamed at the least budget."""
    with load(base, paths) as model:
        yield model


@pytest.fixture
def streamed(opened: ls.StreamedModel) -> ls.StreamedModel:
    """Return the model with its first adapter active."""
    opened.set_adapter("first")
    opened.reset_report()
    return opened


@pytest.fixture(autouse=True, scope="module")
def _no_monitor() -> Iterator[None]:
    """Keep tqdm, which peft uses, from starting a thread of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tqdm, "monitor_interval", 0)
        yield


def generate(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the new tokens of each of `prompts`, which are equally long and share a tensor."""
    ids = torch.tensor(prompts)
    tokens = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **LENGTH["options"],
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
    )
    answers: list[list[int]] = tokens[:, ids.shape[1] :].tolist()
    return answers


def on_adapter(plain: PeftModel, name: str, compute: Callable[[PreTrainedModel], object]) -> object:
    """Return what `compute` returns for the plain model with the adapter `name`, or without any."""
    model = plain.get_base_model()
    if name == "base":
        with plain.disable_adapter():
            result = compute(model)
    # `disable_adapter` leaves the adapters trainable, which selects other kernels.
    plain.set_adapter(NAMES[0] if name == "base" else name, inference_mode=True)
    return result if name == "base" else compute(model)


@pytest.mark.parametrize(("family", "kind", "dtype", "budget"), CASES)
def test_a_loaded_adapter_equals_peft_in_every_bit_and_in_the_ledger(
    family: str, kind: str, dtype: str, budget: str, tmp_path: Path
) -> None:
    base = save_tiny(family, tmp_path / "base", getattr(torch, dtype))
    path = save_adapter(reference(base), configure(kind), tmp_path / "adapter")
    plain = with_adapter(reference(base), path)
    expected = {computation: computation(plain) for computation in (logits, greedy)}
    with load(base, path, budget) as streamed:
        assert streamed.plan.is_resident == (budget == PLENTY)
        assert ledger_bytes(streamed.plan) == bytes_of_adapters(plain, reference(base)) > 0
        for computation, tensors in expected.items():
            assert_same(tensors, computation(streamed.model), f"{family}, {kind}, {budget}")


class TestSeveralAdapters:
    """`load(model, adapter={...})`."""

    def test_each_is_exact_after_a_switch(self, streamed: ls.StreamedModel, plain: PeftModel) -> None:
        for name in ("second", "base", "third", "first"):
            streamed.set_adapter(name)
            assert_same(on_adapter(plain, name, logits), logits(streamed.model), name)

    def test_the_methods_of_transformers_switch_too(self, base: Path, paths: dict[str, Path]) -> None:
        # transformers cannot switch where only some adapters have a module to save
        pair = {name: paths[name] for name in NAMES[:2]}
        model = with_adapters(reference(base), pair).get_base_model()
        model._hf_peft_config_loaded = True
        with load(base, pair) as streamed:
            assert streamed.model.active_adapters() == ["first"]
            for change in (
                lambda each: each.set_adapter("second"),
                lambda each: each.disable_adapters(),
                lambda each: each.enable_adapters(),
                lambda each: each.delete_adapter("first"),
            ):
                for each in (model, streamed.model):
                    change(each)
                assert_same(logits(model), logits(streamed.model), "after a change")

    def test_the_ledger_adds_them_up_for_each_replica(
        self, base: Path, paths: dict[str, Path], plain: PeftModel
    ) -> None:
        own = bytes_of_adapters(plain, reference(base))
        assert ledger_bytes(ls.plan(base, adapter=paths, device="cpu")) == own
        assert ledger_bytes(ls.plan(base, adapter=paths, devices=["cpu", "cpu"])) == 2 * own

    def test_a_budget_that_is_too_small_names_them(self, base: Path, paths: dict[str, Path]) -> None:
        with pytest.raises(ls.BudgetTooSmallError, match=r"adapters [0-9]"):
            load(base, paths, "10 KiB")

    def test_peft_works_on_the_model_of_the_replica(self, base: Path, paths: dict[str, Path]) -> None:
        pair = {name: paths[name] for name in NAMES[:2]}
        plain = with_adapters(reference(base), pair)
        with load(base, pair) as streamed:
            wrapped = streamed.replicas[0].peft_model
            for each in (plain, wrapped):
                each.add_weighted_adapter(["first", "second"], [0.3, 0.7], "both", combination_type="cat")
                each.set_adapter("both", inference_mode=True)
            assert_same(logits(plain), logits(streamed.model), "add_weighted_adapter")
            assert wrapped.unload() is streamed.model
            assert_same(logits(plain.unload()), logits(streamed.model), "unload")


class TestRequestsWithAdapters:
    """Requests that name their adapters share sweeps."""

    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("replicas", [1, 2])
    def test_each_answer_is_that_of_its_adapter_alone(
        self, packed: bool, replicas: int, base: Path, paths: dict[str, Path], plain: PeftModel
    ) -> None:
        names = (*NAMES, "base")
        requests = [
            GenerationRequest(prompt=prompt, **LENGTH, adapter=name)
            for prompt in PROMPTS[:2]
            for name in names
        ]
        together = packed and replicas == 1
        groups = [PROMPTS[:2]] if together else [PROMPTS[:1], PROMPTS[1:2]]
        answers: dict[str, list[list[int]]] = {name: [] for name in names}
        for name in names:
            for group in groups:
                answers[name] += on_adapter(plain, name, lambda model, group=group: generate(model, group))
        with load(base, paths, replicas=replicas) as streamed:
            results = ls.generate_many(streamed, requests, packed=packed)
            assert [result.error for result in results] == [None] * len(requests)
            got = {name: [list(r.tokens) for r in results if r.request.adapter == name] for name in names}
            # as many at once as the workload has rows
            assert streamed.report().sweeps <= 2 * NEW_TOKENS
        assert len({str(answer) for answer in answers.values()}) == len(names)
        assert got == answers

    def test_without_a_name_the_active_adapter_answers(
        self, streamed: ls.StreamedModel, plain: PeftModel
    ) -> None:
        streamed.set_adapter("second")
        requests = [GenerationRequest(prompt=PROMPTS[0], **LENGTH, adapter=name) for name in ("first", None)]
        _, result = ls.generate_many(streamed, requests)
        expected = on_adapter(plain, "second", lambda model: generate(model, PROMPTS[:1]))
        assert [list(result.tokens)] == expected
        assert_same(on_adapter(plain, "second", logits), logits(streamed.model), "afterwards")

    def test_experts_of_several_adapters_share_sweeps(self, tmp_path: Path) -> None:
        base = save_tiny("mixtral", tmp_path / "base", torch.bfloat16)
        paths = {
            name: save_adapter(reference(base), experts_lora, tmp_path / name, seed)
            for seed, name in enumerate(NAMES[:2])
        }
        plain = with_adapters(reference(base), paths)
        requests = [
            GenerationRequest(prompt=prompt, **LENGTH, adapter=name)
            for prompt in PROMPTS
            for name in (*NAMES[:2], "base")
        ]
        with load(base, paths) as streamed:
            results = ls.generate_many(streamed, requests, packed=False)
            for result in results:
                prompt, name = result.request.prompt, str(result.request.adapter)
                assert [list(result.tokens)] == on_adapter(
                    plain, name, lambda model, prompt=prompt: generate(model, [prompt])
                )

    def test_scores_are_those_of_the_adapter(self, streamed: ls.StreamedModel, plain: PeftModel) -> None:
        prefix, token = list(PROMPTS[0]), 17
        names = (*NAMES, "base", None)
        results = ls.score(streamed, [(prefix, [[token]], name) for name in names])

        def logprob(model: PreTrainedModel) -> torch.Tensor:
            with torch.no_grad():
                rows = model(input_ids=torch.tensor([prefix]), logits_to_keep=1).logits[0]
            return rows.float().log_softmax(dim=-1)[0, token]

        for name, result in zip(names, results, strict=True):
            expected = on_adapter(plain, name or "first", logprob)
            assert torch.equal(bits(expected), bits(torch.tensor(result.scores[0].token_logprobs[0]))), name

    def test_an_unknown_adapter_is_refused_before_anything_runs(self, streamed: ls.StreamedModel) -> None:
        requests = [GenerationRequest(prompt=[5], adapter=name) for name in ("first", "fourth")]
        with pytest.raises(
            ls.PlanError, match=r"request 1 names the adapter 'fourth', but .* 'third', 'base'"
        ):
            ls.generate_many(streamed, requests)
        with pytest.raises(ls.PlanError, match=r"request 0 names the adapter 'fourth'"):
            ls.score(streamed, [([5], [[6]], "fourth")])
        assert streamed.report().sweeps == 0

    def test_prompts_cannot_share_sweeps(self, base: Path, tmp_path: Path) -> None:
        path = save_adapter(reference(base), KINDS["prompt tuning"], tmp_path / "adapter")
        with load(base, path) as streamed:
            with pytest.raises(ls.UnsupportedModelError, match=r"prompt learning .* one call at a time"):
                ls.generate_many(streamed, [GenerationRequest(prompt=[5])])
            with pytest.raises(ls.UnsupportedModelError, match=r"prompt learning .* one call at a time"):
                ls.score(streamed, [([5], [[6]])])

    def test_tasks_that_switch_by_themselves_do_not_meet(
        self, streamed: ls.StreamedModel, plain: PeftModel
    ) -> None:
        def call(name: str) -> list[list[int]]:
            streamed.replicas[0].peft_model.set_adapter(name, inference_mode=True)
            return generate(streamed.model, PROMPTS[:1])

        results = streamed.group.run([lambda name=name: call(name) for name in NAMES])
        for name, result in zip(NAMES, results, strict=True):
            assert result.value == on_adapter(plain, name, lambda model: generate(model, PROMPTS[:1]))


class TestMerges:
    """A merge is refused before anything is changed."""

    @pytest.mark.parametrize("wrapped_by_user", [False, True])
    def test_a_refused_merge_changes_nothing(
        self, wrapped_by_user: bool, base: Path, paths: dict[str, Path]
    ) -> None:
        adapter = None if wrapped_by_user else paths["third"]
        least, most = (
            ls.plan(base, adapter=adapter, budget=each, device="cpu", workload=WORKLOAD).ledger.device_bytes
            for each in ("min", PLENTY)
        )
        budget = (least + most) // 2
        with ls.load(base, adapter=adapter, budget=budget, device="cpu", workload=WORKLOAD) as streamed:
            assert 0 < streamed.plan.count(ls.Residency.DEVICE) < len(streamed.plan.units)
            wrapped = streamed.replicas[0].peft_model
            if wrapped_by_user:
                wrapped = PeftModel.from_pretrained(streamed.model, paths["third"])
            before = logits(streamed.model)
            for merge in (wrapped.merge_adapter, wrapped.merge_and_unload):
                with pytest.raises(
                    ls.UnsupportedModelError, match=r"cannot be merged .* Nothing was changed"
                ):
                    merge()
                assert_same(before, logits(streamed.model), merge.__name__)

    def test_a_resident_model_can_be_merged(self, base: Path, paths: dict[str, Path]) -> None:
        plain = with_adapter(reference(base), paths["first"]).merge_and_unload()
        with load(base, paths["first"], PLENTY) as streamed:
            merged = streamed.replicas[0].peft_model.merge_and_unload()
            assert_same(logits(plain), logits(merged), "merged")


class TestModulesWithAdapters:
    """What else can be done with modules that have adapters."""

    def test_a_copy_of_a_block_does_not_stream(self, streamed: ls.StreamedModel, plain: PeftModel) -> None:
        copied = deepcopy(streamed.model.model.layers[1])
        hidden = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(0))
        positions = streamed.model.model.rotary_emb(hidden, torch.arange(3)[None])
        plain.set_adapter("first", inference_mode=True)
        block = plain.get_base_model().model.layers[1]
        sweeps = streamed.timeline.totals[ls.Activity.COMPUTE].count
        with torch.no_grad():
            expected, actual = (each(hidden, position_embeddings=positions) for each in (block, copied))
        assert_same({"hidden": expected}, {"hidden": actual}, "copy")
        assert streamed.timeline.totals[ls.Activity.COMPUTE].count == sweeps

    def test_closing_frees_every_weight(self, base: Path, paths: dict[str, Path]) -> None:
        with load(base, paths) as streamed:
            wrapped = streamed.replicas[0].peft_model
            logits(streamed.model)
        assert {parameter.device.type for parameter in wrapped.parameters()} == {"meta"}
        with pytest.raises(ls.StreamClosedError):
            streamed.set_adapter("first")
        with pytest.raises(ls.StreamClosedError):
            logits(streamed.model)

    def test_an_adapter_that_the_user_puts_on_works_in_requests(self, base: Path) -> None:
        torch.manual_seed(3)
        config = LoraConfig(
            target_modules=["q_proj", "down_proj"], init_lora_weights=False, inference_mode=True
        )
        plain = get_peft_model(reference(base), deepcopy(config)).eval()
        torch.manual_seed(3)
        with ls.load(base, budget="min", device="cpu", workload=WORKLOAD) as streamed:
            get_peft_model(streamed.model, deepcopy(config)).eval()
            requests = [
                GenerationRequest(prompt=PROMPTS[0], **LENGTH, adapter=name) for name in ("default", "base")
            ]
            tuned, without = ls.generate_many(streamed, requests)
        assert [list(tuned.tokens)] == generate(plain.get_base_model(), PROMPTS[:1])
        assert list(without.tokens) != list(tuned.tokens)
