"""No change of a streamed weight is lost: it raises at once, and the model is as it was.

Every test runs at the least budget, where every large weight is away between forwards.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from transformers import AutoModelForCausalLM, PreTrainedModel

import layerstream as ls

IDS = torch.arange(1, 13).reshape(2, 6)


@pytest.fixture(scope="module")
def streamed(tiny_llama_dir: Path) -> Iterator[ls.StreamedModel]:
    with ls.load(tiny_llama_dir, budget="min") as model:
        yield model


@pytest.fixture(scope="module")
def plain(tiny_llama_dir: Path) -> PreTrainedModel:
    return _plain(tiny_llama_dir)


class _Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def _plain(directory: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory).eval()


@pytest.fixture
def model(streamed: ls.StreamedModel, plain: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Return the streamed model; after the test it must still equal the plain one."""
    yield streamed.model
    with torch.no_grad():
        assert torch.equal(streamed.model(IDS).logits, plain(IDS).logits)


def linear(model: PreTrainedModel) -> nn.Linear:
    return model.model.layers[2].mlp.up_proj


def zeros_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(tensor.shape) for name, tensor in model.state_dict().items()}


def for_each_parameter(model: PreTrainedModel, change: Callable[[nn.Parameter], object]) -> None:
    for parameter in model.parameters():
        change(parameter)


def assign(owner: Any, name: str, value: Any) -> None:
    setattr(owner, name, value)


WRITES: dict[str, Callable[[PreTrainedModel], object]] = {
    "parameter.data.zero_()": lambda m: for_each_parameter(m, lambda p: p.data.zero_()),
    "parameter.add_()": lambda m: for_each_parameter(m, lambda p: p.add_(1)),
    "parameter.data = ": lambda m: for_each_parameter(m, lambda p: assign(p, "data", torch.zeros(1))),
    "module.apply()": lambda m: m.apply(
        lambda module: isinstance(module, nn.Linear) and module.weight.data.zero_()
    ),
    "init.normal_()": lambda m: nn.init.normal_(linear(m).weight),
    "a write to a row": lambda m: linear(m).weight[0].zero_(),
    "a write to the transpose": lambda m: linear(m).weight.T.mul_(2),
    "an item": lambda m: linear(m).weight.__setitem__(0, 1.0),
    "out=": lambda m: torch.add(torch.zeros(()), torch.zeros(()), out=linear(m).weight),
    "a list of tensors": lambda m: torch._foreach_add_([linear(m).weight], 1.0),
    "module.weight = ": lambda m: assign(linear(m), "weight", nn.Parameter(torch.zeros(1))),
    "prune": lambda m: prune.l1_unstructured(linear(m), "weight", 0.5),
    "load_state_dict()": lambda m: m.load_state_dict(zeros_of(m)),
    "load_state_dict() of a part": lambda m: m.model.load_state_dict(zeros_of(m.model)),
    "load_state_dict(assign=True)": lambda m: m.load_state_dict(zeros_of(m), assign=True),
    "functional_call()": lambda m: torch.func.functional_call(
        m, {"model.layers.2.mlp.up_proj.weight": torch.zeros(1)}, (IDS,)
    ),
    "model.type()": lambda m: m.type(torch.bfloat16),
    "part.to()": lambda m: m.model.to(torch.bfloat16),
    "block.half()": lambda m: m.model.layers[1].half(),
    "to_empty()": lambda m: m.to_empty(device="cpu"),
    "share_memory()": lambda m: m.share_memory(),
    "part.share_memory()": lambda m: m.model.share_memory(),
    "pickle": pickle.dumps,
    "torch.save(model)": lambda m: torch.save(m, io.BytesIO()),
    "torch.save(state_dict)": lambda m: torch.save(m.state_dict(), io.BytesIO()),
    "copy.copy()": copy.copy,
    "copy.deepcopy()": copy.deepcopy,
}
"""What would be lost at the next visit, or would go wrong without a word."""


@pytest.mark.parametrize("write", WRITES)
def test_a_write_that_would_be_lost_is_refused(model: PreTrainedModel, write: str) -> None:
    with torch.no_grad(), pytest.raises(ls.UnsupportedModelError, match=r"stream"):
        WRITES[write](model)


def test_a_state_dict_is_not_written_to_a_file(model: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(ls.UnsupportedModelError, match="Copy the checkpoint's files"):
        save_file(model.state_dict(), tmp_path / "model.safetensors")


def test_two_tensors_are_not_swapped(model: PreTrainedModel) -> None:
    with pytest.raises(RuntimeError, match="Cannot swap"):
        torch.utils.swap_tensors(linear(model).weight, nn.Parameter(torch.zeros(1)))


@pytest.mark.parametrize(
    "change",
    [
        lambda module: module.weight.mul_(2),
        lambda module: module.weight.data.mul_(2),
        lambda module: assign(module, "weight", nn.Parameter(module.weight * 2)),
    ],
    ids=["in place", "through .data", "replaced"],
)
def test_a_change_during_the_forward_is_refused_at_its_end(
    model: PreTrainedModel, change: Callable[[nn.Module], object]
) -> None:
    def hook(module: nn.Module, _: Any) -> None:
        change(module)

    handle = linear(model).register_forward_pre_hook(hook)
    try:
        with torch.no_grad(), pytest.raises(ls.UnsupportedModelError, match=r"layers\.2\.mlp\.up_proj"):
            model(IDS)
    finally:
        handle.remove()


class TestWhatWorks:
    """What does not change a streamed weight works as with the plain model."""

    def test_weights_can_be_read_at_any_time(self, model: PreTrainedModel, plain: PreTrainedModel) -> None:
        expected = dict(plain.named_parameters())
        for name, parameter in model.named_parameters():
            assert parameter.shape == expected[name].shape
            assert torch.equal(parameter.float().sum(), expected[name].float().sum())

    def test_moving_to_the_same_place_changes_nothing(self, model: PreTrainedModel) -> None:
        assert model.model.to("cpu") is model.model
        assert model.model.layers[1].float() is model.model.layers[1]

    def test_the_same_weights_may_be_loaded(self, model: PreTrainedModel, plain: PreTrainedModel) -> None:
        model.load_state_dict(plain.state_dict())

    def test_a_copy_of_a_block_is_resident_and_equal(
        self, model: PreTrainedModel, plain: PreTrainedModel, streamed: ls.StreamedModel
    ) -> None:
        copied = copy.deepcopy(model.model.layers[1])
        states = torch.randn(1, 3, model.config.hidden_size)
        position = model.model.rotary_emb(states, torch.arange(3)[None])
        bytes_read = streamed.report().bytes_read
        with torch.no_grad():
            expected = plain.model.layers[1](states, position_embeddings=position)
            assert torch.equal(copied(states, position_embeddings=position), expected)
        assert streamed.report().bytes_read == bytes_read
        copied.mlp.up_proj.weight.data.zero_()

    @pytest.mark.parametrize("name", ["lm_head", "model.layers.2.mlp.up_proj", "model.embed_tokens"])
    def test_a_parametrized_weight_gives_the_same_as_in_the_plain_model(
        self, tiny_llama_dir: Path, name: str
    ) -> None:
        outputs = []
        for loaded in (ls.load(tiny_llama_dir, budget="min"), _plain(tiny_llama_dir)):
            model = loaded.model if isinstance(loaded, ls.StreamedModel) else loaded
            parametrize.register_parametrization(model.get_submodule(name), "weight", _Doubled())
            with torch.no_grad():
                outputs.append(model(IDS).logits)
                parametrize.remove_parametrizations(
                    model.get_submodule(name), "weight", leave_parametrized=False
                )
                outputs.append(model(IDS).logits)
            if isinstance(loaded, ls.StreamedModel):
                loaded.close()
        assert torch.equal(outputs[0], outputs[2])
        assert torch.equal(outputs[1], outputs[3])

    @pytest.mark.parametrize("name", ["lm_head", "model.layers.2.mlp.up_proj"])
    def test_a_weight_that_is_computed_from_others_is_not_streamed_any_more(
        self, tiny_llama_dir: Path, name: str
    ) -> None:
        plain = _plain(tiny_llama_dir)
        with ls.load(tiny_llama_dir, budget="min") as streamed, torch.no_grad():
            for model in (plain, streamed.model):
                parametrizations.weight_norm(
                    model.get_submodule(name)
                ).parametrizations.weight.original0.mul_(2)
            assert torch.equal(streamed.model(IDS).logits, plain(IDS).logits)

    def test_a_copy_of_the_backbone_is_resident_and_equal(
        self, model: PreTrainedModel, plain: PreTrainedModel
    ) -> None:
        copied = copy.deepcopy(model.model)
        with torch.no_grad():
            assert torch.equal(copied(IDS).last_hidden_state, plain.model(IDS).last_hidden_state)

    def test_tying_and_initializing_again_change_nothing(self, model: PreTrainedModel) -> None:
        model.tie_weights()
        model.init_weights()


@pytest.mark.parametrize(
    "backward",
    [
        lambda m: m(IDS, labels=IDS).loss.backward(),
        lambda m: m.model(IDS).last_hidden_state.sum().backward(),
        lambda m: m(inputs_embeds=m.get_input_embeddings()(IDS).requires_grad_()).logits.sum().backward(),
        lambda m: (
            m.model.layers[1](
                torch.randn(1, 3, m.config.hidden_size, requires_grad=True),
                position_embeddings=m.model.rotary_emb(torch.randn(1), torch.arange(3)[None]),
            )
            .sum()
            .backward()
        ),
    ],
    ids=["loss", "decoder", "saliency", "block"],
)
def test_a_backward_is_refused(model: PreTrainedModel, backward: Callable[[PreTrainedModel], object]) -> None:
    with pytest.raises(ls.UnsupportedModelError, match="backward cannot go through"):
        backward(model)


def test_a_compiled_model_runs_eagerly_with_one_warning(
    model: PreTrainedModel, plain: PreTrainedModel
) -> None:
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad(), pytest.warns(UserWarning, match="runs eagerly"):
        assert torch.equal(compiled(IDS).logits, plain(IDS).logits)


@pytest.mark.parametrize("part", ["", "model", "model.layers.1"])
def test_compiling_in_place_warns_and_changes_nothing(model: PreTrainedModel, part: str) -> None:
    with pytest.warns(UserWarning, match="runs eagerly"):
        model.get_submodule(part).compile()
