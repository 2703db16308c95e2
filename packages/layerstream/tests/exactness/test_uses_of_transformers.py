"""Common uses of a transformers model give the same results with a streamed one, bit for bit.

Every test runs at the least budget, where weights are loaded and dropped all the time, and compares with the
plain model.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.attachments import ForbidEven, Recorder, outputs_of_blocks, weights_in_use
from kit.budgets import load
from kit.compare import (
    Tensors,
    assert_same,
    cache_argument,
    generate,
    hidden_states,
    left_padded_batch,
    logits,
    reference,
)
from kit.families import save_tiny
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TextIteratorStreamer,
    pipeline,
)

import layerstream as ls

PROMPTS = ["w10 w11 w12 w13", "w20 w21"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per word: w0 … w198."""
    words = Tokenizer(WordLevel({f"w{index}": index for index in range(199)}, unk_token="w3"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="w0", bos_token="w1", eos_token="w2", padding_side="left"
    )


class TestPlainUses:
    """The public interfaces of transformers."""

    def test_a_text_generation_pipeline_writes_the_same_text(
        self, plain: PreTrainedModel, streamed: ls.StreamedModel, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        """One prompt at a time and in a batch."""
        for batch_size in (1, 2):
            texts = [
                pipeline("text-generation", model=model, tokenizer=tokenizer)(
                    PROMPTS, max_new_tokens=6, min_new_tokens=6, do_sample=False, batch_size=batch_size
                )
                for model in (plain, streamed.model)
            ]
            assert texts[0] == texts[1]

    @pytest.mark.parametrize("batch_size", [1, 2])
    @pytest.mark.parametrize("sampling", [False, True])
    def test_a_pipeline_takes_the_streamed_model_itself(
        self,
        sampling: bool,
        batch_size: int,
        plain: PreTrainedModel,
        streamed: ls.StreamedModel,
        tokenizer: PreTrainedTokenizerFast,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """With its streamer too, and without the error about a class that a pipeline does not know."""
        monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
        outputs = []
        for model in (plain, streamed.model, streamed):
            torch.manual_seed(7)
            writer = pipeline("text-generation", model=model, tokenizer=tokenizer)
            streamer = {"streamer": Recorder()} if batch_size == 1 else {}
            texts = writer(
                PROMPTS,
                max_new_tokens=6,
                min_new_tokens=6,
                do_sample=sampling,
                batch_size=batch_size,
                **streamer,
            )
            heard = streamer["streamer"].heard if streamer else []
            outputs.append((texts, heard, repr(writer), writer.device, writer.dtype))
        assert outputs[0] == outputs[1] == outputs[2]
        assert "is not supported for" not in caplog.text

    @pytest.mark.parametrize("device", ["cpu", 0, "cuda:1", -1])
    def test_a_pipeline_refuses_to_move_a_streamed_model(
        self, device: Any, streamed: ls.StreamedModel, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        """Even to where it is: transformers refuses the argument for every placed model."""
        for model in (streamed, streamed.model):
            with pytest.raises(ValueError, match="cannot be moved to a specific device"):
                pipeline("text-generation", model=model, tokenizer=tokenizer, device=device)

    def test_a_pipeline_reports_the_dtype_of_the_streamed_model_whatever_it_is_told(
        self, streamed: ls.StreamedModel, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        """transformers drops the argument for every model that is loaded, before the model sees it."""
        writer = pipeline("text-generation", model=streamed, tokenizer=tokenizer, dtype=torch.float32)
        assert writer.dtype == torch.bfloat16

    def test_attributes_of_the_model_are_read_and_set_through_the_streamed_model(
        self, streamed: ls.StreamedModel
    ) -> None:
        """What is set on it reaches the model, and its own attributes stay its own."""
        assert streamed.config is streamed.model.config
        assert (streamed.device, streamed.dtype) == (torch.device("cpu"), torch.bfloat16)
        assert streamed.can_generate()  # type: ignore[attr-defined]
        settings = GenerationConfig(max_new_tokens=3, do_sample=False)
        streamed.generation_config = settings  # type: ignore[attr-defined]
        assert streamed.model.generation_config is settings
        assert (
            streamed.generate(**_one_row(streamed.model)).shape[1]
            == 3 + _one_row(streamed.model)["input_ids"].shape[1]
        )
        assert isinstance(streamed, ls.StreamedModel)
        assert not isinstance(streamed, PreTrainedModel)
        assert "StreamedModel[LlamaForCausalLM]" in repr(type(streamed))
        with pytest.raises(AttributeError, match="no_such_name"):
            streamed.no_such_name  # type: ignore[attr-defined]  # noqa: B018

    def test_a_streamer_receives_every_token_in_order(
        self, plain: PreTrainedModel, streamed: ls.StreamedModel
    ) -> None:
        """The prompt first, then one token a step, then the end."""
        seen = []
        for model in (plain, streamed.model):
            streamer = Recorder()
            model.generate(**_one_row(model), **_greedily(6), streamer=streamer)
            seen.append(streamer.heard)
        assert seen[0] == seen[1]
        assert len(seen[0]) == 1 + 6 + 1

    def test_generating_in_a_thread_feeds_an_iterator_of_text(
        self, plain: PreTrainedModel, streamed: ls.StreamedModel, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        """Chat front ends use it this way."""
        texts = []
        for model in (plain, streamed.model):
            streamer = TextIteratorStreamer(tokenizer, timeout=60)
            thread = threading.Thread(
                target=model.generate, kwargs={**_one_row(model), **_greedily(6), "streamer": streamer}
            )
            thread.start()
            texts.append("".join(streamer))
            thread.join()
        assert texts[0] == texts[1] != ""

    def test_the_model_knows_its_device_and_dtype(
        self, plain: PreTrainedModel, streamed: ls.StreamedModel
    ) -> None:
        """generate() and pipelines move their inputs to that device."""
        assert streamed.model.device == plain.device == torch.device("cpu")
        assert streamed.model.dtype == plain.dtype == torch.bfloat16
        assert type(streamed.model) is type(plain)
        assert streamed.model.num_parameters() == plain.num_parameters()

    def test_generate_without_input_equals_the_plain_model(
        self, plain: PreTrainedModel, streamed: ls.StreamedModel
    ) -> None:
        """generate() then makes a prompt of the first token on the model's device."""
        assert torch.equal(streamed.model.generate(**_greedily(4)), plain.generate(**_greedily(4)))

    def test_inputs_embeds_give_the_same_results_as_in_the_plain_model(
        self, plain: PreTrainedModel, streamed: ls.StreamedModel
    ) -> None:
        """The embedding is called from outside the forward, wherever its rows are."""
        outputs = []
        for model in (plain, streamed.model):
            rows = model.get_input_embeddings()(left_padded_batch(model)["input_ids"])
            outputs.append(
                {"rows": rows} | generate(model, input_ids=None, inputs_embeds=rows, do_sample=False)
            )
        assert_same(*outputs, "inputs_embeds")

    def test_the_loss_for_labels_equals_the_plain_models(
        self, plain: PreTrainedModel, streamed: ls.StreamedModel
    ) -> None:
        """Evaluation needs it."""
        losses = []
        for model in (plain, streamed.model):
            batch = left_padded_batch(model)
            with torch.inference_mode():
                losses.append({"loss": model(**batch, labels=batch["input_ids"]).loss})
        assert_same(*losses, "loss")

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
    def test_logits_do_not_depend_on_the_grad_mode(
        self, plain: PreTrainedModel, streamed: ls.StreamedModel, mode: Any
    ) -> None:
        """Users forget `no_grad`; streamed weights must cause neither an error nor another result then."""
        outputs = []
        for model in (plain, streamed.model):
            with mode():
                outputs.append({"logits": model(**left_padded_batch(model)).logits.detach()})
        assert_same(*outputs, mode.__name__)

    def test_a_cache_can_be_reused_from_call_to_call(
        self, plain: PreTrainedModel, streamed: ls.StreamedModel
    ) -> None:
        """A chat keeps its cache and sends only the new tokens."""
        outputs: list[Tensors] = []
        for model in (plain, streamed.model):
            cache, ids, steps = DynamicCache(config=model.config), _one_row(model)["input_ids"], {}
            for turn, part in enumerate((ids[:, :4], ids[:, 4:5], ids[:, 5:])):
                with torch.no_grad():
                    steps[f"turn {turn}"] = model(input_ids=part, **cache_argument(model, cache)).logits
            outputs.append(steps)
        assert_same(*outputs, "cache")


class TestOtherWaysToGenerate:
    """Decoding that does more than loop over forwards."""

    @pytest.mark.parametrize("streams_the_assistant", [False, True])
    def test_assisted_generation_equals_the_plain_models(
        self, bf16_llama_dir: Path, plain: PreTrainedModel, streams_the_assistant: bool, tmp_path: Path
    ) -> None:
        """The small draft model is plain or itself streamed."""
        draft_path = save_tiny("llama_tied", tmp_path, torch.bfloat16, seed=7)
        draft = reference(draft_path)
        expected = generate(plain, **_one_row(plain), assistant_model=draft, do_sample=False)
        with load(bf16_llama_dir, "auto", "min") as target, load(draft_path, "auto", "min") as small:
            assistant = small.model if streams_the_assistant else draft
            actual = generate(target.model, **_one_row(plain), assistant_model=assistant, do_sample=False)
        assert_same(expected, actual, "assisted")

    def test_prompt_lookup_equals_the_plain_models(
        self, plain: PreTrainedModel, streamed: ls.StreamedModel
    ) -> None:
        """Drafts come from the prompt itself."""
        ids = torch.tensor([[11, 12, 13, 14, 11, 12, 13]])
        settings = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "prompt_lookup_num_tokens": 3,
            "do_sample": False,
        }
        assert_same(generate(plain, **settings), generate(streamed.model, **settings), "prompt lookup")

    def test_a_custom_logits_processor_sees_and_steers_the_same_scores(
        self, plain: PreTrainedModel, streamed: ls.StreamedModel
    ) -> None:
        """It sees the same scores and changes them in the same way."""
        outputs, seen = [], []
        for model in (plain, streamed.model):
            processor = ForbidEven()
            outputs.append(
                generate(model, do_sample=False, logits_processor=LogitsProcessorList([processor]))
            )
            seen.append({f"step {index}": scores for index, scores in enumerate(processor.seen)})
        assert_same(*outputs, "processor")
        assert_same(*seen, "scores seen by the processor")
        assert bool((outputs[0]["sequences"][:, -5:] % 2 == 1).all())

    def test_several_sampled_beams_equal_the_plain_models(
        self, plain: PreTrainedModel, streamed: ls.StreamedModel
    ) -> None:
        """The cache's beams are reordered between sweeps."""
        settings: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 3, "do_sample": True}
        outputs = []
        for model in (plain, streamed.model):
            torch.manual_seed(3)
            outputs.append(generate(model, **settings))
        assert_same(*outputs, "beam sample")


class TestLookingInside:
    """Hooks and adapters see the blocks while they run."""

    def test_hooks_on_blocks_see_the_same_hidden_states(
        self, plain: PreTrainedModel, streamed: ls.StreamedModel
    ) -> None:
        """Interpretability tools register them on every block."""
        seen = [outputs_of_blocks(model) for model in (plain, streamed.model)]
        assert len(seen[0]) == plain.config.num_hidden_layers
        assert_same(*seen, "hooked outputs")
        assert_same(hidden_states(plain), hidden_states(streamed.model), "after the hooks are gone")

    def test_all_weights_of_a_layer_are_present_while_it_runs(
        self, plain: PreTrainedModel, streamed: ls.StreamedModel
    ) -> None:
        """A hook on each linear layer reads the checkpoint's weight."""
        seen = [weights_in_use(model) for model in (plain, streamed.model)]
        assert len(seen[0]) == 7 * plain.config.num_hidden_layers
        assert_same(*seen, "weights in use")

    def test_a_hook_may_replace_a_blocks_output(
        self, plain: PreTrainedModel, streamed: ls.StreamedModel
    ) -> None:
        """Steering vectors work this way."""
        outputs = []
        for model in (plain, streamed.model):
            handle = model.get_decoder().layers[1].register_forward_hook(lambda _m, _i, output: output + 0.25)
            outputs.append(logits(model))
            handle.remove()
        assert_same(*outputs, "steered")
        assert not torch.equal(outputs[0]["logits"], logits(plain)["logits"])

    # peft asks for a property that transformers 5.23 renamed.
    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
    def test_a_lora_adapter_gives_the_same_logits(
        self, bf16_llama_dir: Path, streamed: ls.StreamedModel
    ) -> None:
        """peft wraps the streamed layers; its own small weights stay in place."""
        peft = pytest.importorskip("peft")
        outputs = []
        for model in (reference(bf16_llama_dir), streamed.model):
            torch.manual_seed(5)
            adapter = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
            outputs.append(logits(peft.get_peft_model(model, adapter).eval()))
        assert_same(*outputs, "lora")


def _one_row(model: PreTrainedModel) -> Tensors:
    return left_padded_batch(model, (7,))


def _greedily(num_tokens: int) -> dict[str, Any]:
    return {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "do_sample": False, "pad_token_id": 0}
