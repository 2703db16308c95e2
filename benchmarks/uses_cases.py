"""The cases of `bench_uses.py` for one tiny model: adapters by peft and by `load`, and modes of torch.

Knows the test kit, which must be on the path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import transformers
from kit import adapters
from kit.compare import Tensors, first_difference, left_padded_batch
from kit.families import save_tiny
from transformers import PreTrainedModel

import layerstream as ls

Case = tuple[str, Callable[[], str | None]]

WORKLOAD = ls.Workload(batch_size=6, prompt_tokens=12, new_tokens=8)
PLENTY = "1 GiB"
NEW_TOKENS = 4


class Bench:
    """One family in one dtype on one device."""

    def __init__(self, family: str, dtype: str, device: str, folder: Path) -> None:
        """Save the checkpoint and its adapters in `folder`."""
        transformers.logging.set_verbosity_error()
        torch.set_num_threads(1)
        self.device, self.folder = device, folder
        self.path = save_tiny(family, folder / "model", getattr(torch, dtype))
        self._plain_with: dict[str, Tensors | Exception] = {}

    def adapters(self, budget: str) -> Iterator[Case]:
        """Yield a case for each kind of adapter, put on by peft and by `load`."""
        for kind, configure in adapters.KINDS.items():
            expected = self._with_adapter(kind, configure)
            if isinstance(expected, Exception):
                continue  # peft refuses it on the plain model too
            yield f"{kind}, by peft", partial(self._compare, expected, budget, kind, by_load=False)
            yield f"{kind}, by load", partial(self._compare, expected, budget, kind, by_load=True)

    def modes(self, budget: str) -> Iterator[Case]:
        """Yield a case for each mode of torch, as loaded and frozen."""
        for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
            for is_frozen in (False, True):
                name = f"{mode.__name__}{', frozen' if is_frozen else ''}"
                yield name, partial(self._compare_mode, mode, is_frozen, budget)

    def _plain(self) -> PreTrainedModel:
        model = transformers.AutoModelForCausalLM.from_pretrained(self.path, dtype="auto")
        return model.to(self.device).eval()

    def _with_adapter(self, kind: str, configure: Callable[..., object]) -> Tensors | Exception:
        if kind not in self._plain_with:
            try:
                adapters.save_adapter(self._plain().cpu(), configure, self._adapter(kind))
                self._plain_with[kind] = self._results(
                    adapters.with_adapter(self._plain(), self._adapter(kind))
                )
            except Exception as error:  # noqa: BLE001 - peft's own limit for this family
                self._plain_with[kind] = error
        return self._plain_with[kind]

    def _adapter(self, kind: str) -> Path:
        return self.folder / kind.replace(" ", "_")

    def _compare(self, expected: Tensors, budget: str, kind: str, *, by_load: bool) -> str | None:
        path = self._adapter(kind)
        with self._load(budget, adapter=path if by_load else None) as streamed:
            model = streamed.model if by_load else adapters.with_adapter(streamed.model, path)
            return first_difference(expected, self._results(model))

    def _compare_mode(self, mode: Callable[..., object], is_frozen: bool, budget: str) -> str | None:
        plain = self._plain().requires_grad_(not is_frozen)
        with self._load(budget) as streamed, mode():
            streamed.model.requires_grad_(not is_frozen)
            return first_difference(self._results(plain), self._results(streamed.model))

    def _load(self, budget: str, adapter: Path | None = None) -> ls.StreamedModel:
        options = {"device": self.device, "workload": WORKLOAD, "adapter": adapter}
        size: int | str = {"disk": "min", "resident": PLENTY}.get(budget, 0)
        if not size:
            least, most = (
                ls.plan(
                    self.path, budget=ls.MemoryBudget(device=each, host="min"), **options
                ).ledger.device_bytes
                for each in ("min", PLENTY)
            )
            size = (least + most) // 2
        return ls.load(self.path, budget=ls.MemoryBudget(device=size, host="min"), **options)

    def _results(self, model: PreTrainedModel) -> Tensors:
        results: Tensors = {}
        for lengths in ((9, 6), (9, 7, 5), (7,)):
            batch = {
                name: tensor.to(self.device) for name, tensor in left_padded_batch(model, lengths).items()
            }
            results[f"logits of {len(lengths)}"] = model(**batch).logits.detach().clone()
            results[f"last of {len(lengths)}"] = model(**batch, logits_to_keep=1).logits.detach().clone()
        torch.manual_seed(3)
        for does_sample in (False, True):
            output = model.generate(
                **batch,
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                do_sample=does_sample,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_scores=True,
            )
            results[f"tokens, sampled {does_sample}"] = output.sequences.clone()
            for step, scores in enumerate(output.scores):
                results[f"scores {step}, sampled {does_sample}"] = scores.clone()
        return results
