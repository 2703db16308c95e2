"""Common uses of a transformers model give the same results with a streamed one, bit for bit.

Every test runs at the least budget, where weights are loaded and dropped all the time, and compares with the
plain model.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.attachments import Broken, ForbidEven, Recorder, outputs_of_blocks, weights_in_use
from kit.budgets import load
from kit.compare import (
    Tensors,
    assert_same,
    cache_argument,
    generate,
    greedy,
    hidden_states,
    left_padded_batch,
    logits,
    reference,
    sampled,
)
from kit.families import save_tiny
from kit.threads import no_thread_left
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    StoppingCriteriaList,
    TextIteratorStreamer,
    pipeline,
)

import layerstream as ls

PROMPTS = ["w10 w11 w12 w13", "w20 w21"]


@pytest.fixture(autouse=True)
def _nothing_keeps_running() -> Iterator[None]:
    with no_thread_left():
        yield


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny Llama checkpoint in bf16 with a separate head."""
    return save_tiny("llama", tmp_path_factory.mktemp("llama"), torch.bfloat16)


@pytest.fixture(scope="module")
def plain(path: Path) -> PreTrainedModel:
    """Return the plain model of `path`."""
    return reference(path)


@pytest.fixture
def streamed(path: Path) -> Iterator[ls.StreamedModel]:
    """Return `path` streamed at the least budget."""
    with load(path, "auto", "min") as model:
        yield model


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
        self, path: Path, plain: PreTrainedModel, streams_the_assistant: bool, tmp_path: Path
    ) -> None:
        """The small draft model is plain or itself streamed."""
        draft_path = save_tiny("llama_tied", tmp_path, torch.bfloat16, seed=7)
        draft = reference(draft_path)
        expected = generate(plain, **_one_row(plain), assistant_model=draft, do_sample=False)
        with load(path, "auto", "min") as target, load(draft_path, "auto", "min") as small:
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


class TestRepeatedUse:
    """One model used many times, and several models at once."""

    def test_ten_calls_of_changing_shape_all_agree(
        self, plain: PreTrainedModel, streamed: ls.StreamedModel
    ) -> None:
        """Calls end during the prefetcher's read-ahead; the next call must not get the wrong block."""
        for turn in range(10):
            settings: dict[str, Any] = {
                "do_sample": False,
                **left_padded_batch(plain, (4 + turn, 3, 5)[: 1 + turn % 3]),
            }
            assert_same(generate(plain, **settings), generate(streamed.model, **settings), f"call {turn}")
            assert_same(logits(plain), logits(streamed.model), f"forward {turn}")

    def test_the_random_state_is_left_as_the_plain_model_leaves_it(
        self, plain: PreTrainedModel, streamed: ls.StreamedModel
    ) -> None:
        """Streaming draws no random numbers of its own."""
        states = []
        for model in (plain, streamed.model):
            sampled(model)
            states.append({"state": torch.get_rng_state()})
        assert_same(*states, "random state")

    def test_two_models_used_in_turns_do_not_disturb_each_other(
        self, path: Path, plain: PreTrainedModel, tmp_path: Path
    ) -> None:
        """Neither model touches the other's weights."""
        other_path = save_tiny("mixtral", tmp_path)
        other_plain = reference(other_path)
        with load(path, "auto", "min") as first, load(other_path, "auto", "min") as second:
            for _ in range(2):
                assert_same(greedy(plain), greedy(first.model), "first")
                assert_same(greedy(other_plain), greedy(second.model), "second")

    def test_one_checkpoint_can_be_loaded_twice_at_once_and_again_afterwards(
        self, path: Path, plain: PreTrainedModel
    ) -> None:
        """Each loaded model has its own slots."""
        expected = greedy(plain)
        with load(path, "auto", "min") as first, load(path, "auto", "min") as second:
            assert_same(expected, greedy(second.model), "second")
            assert_same(expected, greedy(first.model), "first")
        with load(path, "auto", "min") as third:
            assert_same(expected, greedy(third.model), "third")

    def test_two_models_run_in_two_threads_at_once(self, path: Path, plain: PreTrainedModel) -> None:
        """Both run at the same time."""
        expected, results = greedy(plain), {}
        with load(path, "auto", "min") as first, load(path, "auto", "min") as second:
            models = {"first": first.model, "second": second.model}
            threads = [
                threading.Thread(target=_store, args=(results, name, model)) for name, model in models.items()
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for name in models:
            assert_same(expected, results[name], name)


class TestInterruptions:
    """A forward that fails, and what comes after it."""

    @pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
    @pytest.mark.parametrize("block", [0, 2, 4])
    def test_an_error_in_a_block_leaves_a_model_that_works(
        self, plain: PreTrainedModel, streamed: ls.StreamedModel, error: type[BaseException], block: int
    ) -> None:
        """The error propagates unchanged; the next call starts at the first block again."""
        target = streamed.model.get_decoder().layers[block].mlp

        def fail(*_: object) -> None:
            raise error("in the middle")

        for _ in range(3):
            handle = target.register_forward_pre_hook(fail)
            with pytest.raises(error, match="in the middle"):
                streamed.model(**left_padded_batch(plain))
            handle.remove()
            assert_same(logits(plain), logits(streamed.model), f"after {error.__name__} in block {block}")
        assert_same(greedy(plain), greedy(streamed.model), "generate afterwards")

    def test_an_error_between_two_tokens_leaves_a_model_that_works(
        self, plain: PreTrainedModel, streamed: ls.StreamedModel
    ) -> None:
        """A streamer or criterion may raise, for instance when a browser tab is closed."""
        with pytest.raises(BrokenPipeError):
            generate(streamed.model, do_sample=False, stopping_criteria=StoppingCriteriaList([Broken()]))
        assert_same(greedy(plain), greedy(streamed.model), "generate afterwards")

    def test_bad_input_leaves_a_model_that_works(
        self, plain: PreTrainedModel, streamed: ls.StreamedModel
    ) -> None:
        """The embedding refuses a token id outside of the vocabulary, as usual."""
        with pytest.raises(IndexError):
            streamed.model(input_ids=torch.tensor([[5, 10_000]]))
        assert_same(logits(plain), logits(streamed.model), "logits afterwards")

    def test_use_after_close_is_refused(self, path: Path) -> None:
        """Through `streamed.generate` and through the model."""
        streamed = load(path, "auto", "min")
        streamed.close()
        streamed.close()
        with pytest.raises(ls.StreamClosedError):
            streamed.generate(torch.tensor([[5, 6]]), max_new_tokens=1)
        with pytest.raises(ls.StreamClosedError):
            streamed.model(input_ids=torch.tensor([[5, 6]]))

    @pytest.mark.parametrize(
        "operation",
        [
            lambda model, _: model.half(),
            lambda model, _: model.to(torch.float16),
            lambda model, directory: model.save_pretrained(directory / "copy"),
        ],
        ids=["half", "to", "save_pretrained"],
    )
    def test_an_operation_that_needs_all_weights_at_once_is_refused(
        self, plain: PreTrainedModel, streamed: ls.StreamedModel, operation: Any, tmp_path: Path
    ) -> None:
        """The model still works afterwards."""
        with pytest.raises(ls.UnsupportedModelError):
            operation(streamed.model, tmp_path)
        assert not (tmp_path / "copy").exists()
        assert_same(logits(plain), logits(streamed.model), "logits afterwards")


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

    def test_a_lora_adapter_gives_the_same_logits(self, path: Path, streamed: ls.StreamedModel) -> None:
        """peft wraps the streamed layers; its own small weights stay in place."""
        peft = pytest.importorskip("peft")
        outputs = []
        for model in (reference(path), streamed.model):
            torch.manual_seed(5)
            adapter = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
            outputs.append(logits(peft.get_peft_model(model, adapter).eval()))
        assert_same(*outputs, "lora")


def _one_row(model: PreTrainedModel) -> Tensors:
    return left_padded_batch(model, (7,))


def _greedily(num_tokens: int) -> dict[str, Any]:
    return {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "do_sample": False, "pad_token_id": 0}


def _store(results: dict[str, Tensors], name: str, model: PreTrainedModel) -> None:
    results[name] = greedy(model)
