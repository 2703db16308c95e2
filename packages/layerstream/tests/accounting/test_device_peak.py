"""The ledger's device peak, checked against the model's real forward on meta tensors.

A counter follows every storage: slots, residents, cache and activations. Only the layout code is shared with
the planner's own estimate.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from kit.compare import cache_argument
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import LlamaConfig

import layerstream as ls
from layerstream.architecture.compat import cache_of
from layerstream.checkpoint.reader import DiskReader
from layerstream.engine.absent_weights import place_absent_weights, unload_weights
from layerstream.engine.inspect import ModelSpec, inspect_config
from layerstream.planning.placement import plan_placement
from layerstream.spec.plans import Granularity
from layerstream.streaming.binding import UnitBinding
from layerstream.streaming.sources import UnitSource

GB = 10**9
PROMPT_TOKENS = 4096


class EfficientAttention(TorchFunctionMode):
    """Routes attention to the memory-efficient kernel, as on a card; meta tensors take the quadratic one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = args[:3]
        return torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, None, False, 0.0, True
        )[0]


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of the live storages that were made under this mode."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.alive:
            self.alive[key] = storage.nbytes()
            weakref.finalize(storage, self.alive.pop, key, None)
            self.peak_bytes = max(self.peak_bytes, sum(self.alive.values()))


@pytest.fixture(scope="module")
def llama_70b() -> ModelSpec:
    config = LlamaConfig(
        hidden_size=8192,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        intermediate_size=28672,
        vocab_size=32000,
        max_position_embeddings=8192,
    )
    return inspect_config(config, ls.LoadOptions(dtype="float16"), on_host=False)


@contextmanager
def streamed_on_meta(spec: ModelSpec, plan: ls.PlacementPlan) -> Iterator[None]:
    """Stream the model as planned, from slots on the meta device; the counter sees residents and slots."""
    slots = [torch.empty(plan.slot_bytes, dtype=torch.uint8, device="meta") for _ in range(plan.num_slots)]
    recipes = {unit.name: unit for unit in spec.units.streamed[plan.granularity]}
    if spec.units.head is not None:
        recipes[spec.units.head.name] = spec.units.head
    handles, bindings, kept, cleanups, turn = [], [], [], [], 0
    edges = UnitSource(spec.units.edges[plan.granularity])
    kept.append(torch.empty(edges.layout.device_bytes, dtype=torch.uint8, device="meta"))
    for placement in plan.units:
        source = UnitSource(recipes[placement.name])
        binding = UnitBinding(spec.model, source.unit.tensors)
        bindings.append(binding)
        if placement.residency is ls.Residency.DEVICE:
            memory = torch.empty(source.layout.device_bytes, dtype=torch.uint8, device="meta")
            binding.install((0, 0), lambda source=source, memory=memory: source.device_views(memory))
            continue
        if spec.units.head is not None and placement.name == spec.units.head.name and plan.head_slices > 1:
            cleanups.append(slice_head(spec, plan, slots[0]))
            continue
        slot, turn = slots[turn % len(slots)], turn + 1
        module = spec.model.get_submodule(placement.name)

        def enter(
            *_: Any, binding: UnitBinding = binding, source: UnitSource = source, slot: torch.Tensor = slot
        ) -> None:
            binding.install((0, 0), lambda: source.device_views(slot))

        def leave(*_: Any, binding: UnitBinding = binding) -> None:
            binding.release()

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for binding in bindings:
            binding.forget()
        for cleanup in cleanups:
            cleanup()


def slice_head(spec: ModelSpec, plan: ls.PlacementPlan, slot: torch.Tensor) -> Callable[[], object]:
    """Make the head visit its slices in `slot`; return a function that undoes this."""
    assert spec.units.head is not None
    head = spec.model.get_submodule(spec.units.head.name)
    plain = head.forward
    sources = [UnitSource(unit) for unit in spec.units.head_slices(plan.head_slices)]
    assert max(source.layout.device_bytes for source in sources) <= plan.slot_bytes

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        results = []
        for source in sources:
            binding = UnitBinding(spec.model, source.unit.tensors)
            binding.install((0, 0), lambda source=source: source.device_views(slot))
            results.append(plain(hidden))
            binding.forget()
        return torch.cat(results, dim=-1)

    head.forward = forward
    return lambda: head.__dict__.pop("forward")


def peak_of_real_forward(spec: ModelSpec, plan: ls.PlacementPlan) -> int:
    """Run the prefill and decode one token; return the peak in bytes."""
    units = {unit.name: unit for unit in (*spec.units.streamed[plan.granularity], spec.units.head) if unit}
    names = [tensor.name for placement in plan.units for tensor in units[placement.name].tensors]
    with DiskReader() as reader:
        place_absent_weights(spec.model, spec.recipe, names, reader, torch.device("meta"))
        peak_bytes = run_on_meta(spec, plan)
        unload_weights(spec.model)
    return peak_bytes


def run_on_meta(spec: ModelSpec, plan: ls.PlacementPlan) -> int:
    with (
        torch.no_grad(),
        EfficientAttention(),
        LiveStorages() as counter,
        torch.device("meta"),
        streamed_on_meta(spec, plan),
    ):
        ids = torch.zeros((1, PROMPT_TOKENS), dtype=torch.long)
        output = spec.model(input_ids=ids, use_cache=True, logits_to_keep=1)
        cache = cache_of(spec.model, output)
        del output
        spec.model(
            input_ids=ids[:, :1], **cache_argument(spec.model, cache), use_cache=True, logits_to_keep=1
        )
    return counter.peak_bytes


@pytest.mark.parametrize("card_bytes", [16 * GB, 4 * GB], ids=["16 GB card", "4 GB card"])
def test_a_70b_forward_at_4096_tokens_peaks_where_the_ledger_predicts(
    llama_70b: ModelSpec, card_bytes: int
) -> None:
    machine = ls.Machine(
        name="card",
        device="cuda:0",
        device_memory_bytes=card_bytes,
        host_memory_bytes=32 * GB,
        runtime_bytes=512 * 1024**2,
        memory_bytes_per_s=300e9,
        flops_per_s=3e13,
    )
    workload = ls.Workload(prompt_tokens=PROMPT_TOKENS, new_tokens=1)
    plan = plan_placement(
        profile=llama_70b.profile, budget=ls.MemoryBudget(), workload=workload, machine=machine
    )
    if card_bytes == 4 * GB:
        assert plan.granularity is Granularity.LAYER
        assert plan.embedding is not ls.Residency.DEVICE
    assert plan.ledger.device_bytes <= card_bytes
    peak_bytes = peak_of_real_forward(llama_70b, plan)
    predicted = plan.ledger.device_bytes - machine.runtime_bytes
    assert peak_bytes <= predicted
    assert peak_bytes == pytest.approx(predicted, rel=0.05), plan.explain()
