"""Run lm-evaluation-harness on a streamed model: a whole task in a few sweeps.

Needs the extra `layerstream[lm-eval]`. Requests that share a context become one request of `score`, and
generations become one batch of `generate_many`. The harness itself still tokenizes pairs, rolls windows and
cuts answers at stop texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedTokenizerBase

from ..engine.tokenizer import load_tokenizer
from ..model import StreamedModel
from ..uses.batching.generate import generate_many
from ..uses.batching.requests import GenerationRequest
from ..uses.scoring.score import score

TokenizedPair = tuple[object, list[int], list[int]]
"""The harness's form of a request: its text, the context's tokens and the continuation's tokens."""


class StreamedLM(TemplateLM):
    """A streamed model for lm-evaluation-harness; pass it to `lm_eval.simple_evaluate(model=...)`.

    Log-probabilities are those of `score`, computed in two steps: prefix, then suffix. The harness's own
    model for transformers computes contexts and continuations as one padded batch. In fp32 the two agree up
    to rounding.

    Attributes:
        tokenizer: the tokenizer in use.
        max_length: the longest context in tokens; longer ones are cut at the start.
        max_gen_toks: the maximum number of new tokens if a task does not set one.
    """

    backend = "causal"

    def __init__(
        self,
        streamed: StreamedModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        packed: bool = True,
        max_rows: int | None = None,
        max_gen_toks: int = 256,
    ) -> None:
        """Evaluate an open model. The caller closes it.

        Args:
            streamed: the model.
            tokenizer: by default the checkpoint's own.
            packed: as for `generate_many`.
            max_rows: as for `score` and `generate_many`.
            max_gen_toks: the maximum number of new tokens if a task does not set one.

        Raises:
            CheckpointError: the checkpoint has no tokenizer.
        """
        super().__init__()
        self._streamed, self._packed, self._max_rows = streamed, packed, max_rows
        if tokenizer is None:
            tokenizer = load_tokenizer(streamed.plan.model_name, streamed.options)
        self.tokenizer = tokenizer
        config = streamed.model.config.get_text_config()
        self.max_length = int(getattr(config, "max_position_embeddings", None) or 2048)
        self.max_gen_toks = max_gen_toks

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        end = self.tokenizer.eos_token_id
        return int(end if end is not None else self.prefix_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token in front of a text without context."""
        candidates = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        return next((int(token) for token in candidates if token is not None), 0)

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name for the harness's caches."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the tokens of `string`; special tokens are added unless it begins with the BOS text."""
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not (bos and string.startswith(bos))
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=add_special_tokens, **kwargs)
        return ids

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return the turns as one text in the checkpoint's chat template."""
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def _loglikelihood_tokens(self, requests: Sequence[TokenizedPair], **_: Any) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation after its context, and whether it is greedy."""
        places_of: dict[tuple[int, ...], list[int]] = {}
        for place, (_text, context, continuation) in enumerate(requests):
            max_context = max(1, self.max_length + 1 - len(continuation))
            places_of.setdefault(tuple(context[-max_context:]), []).append(place)
        scoring_requests = [
            (context, [requests[place][2] for place in places]) for context, places in places_of.items()
        ]
        answers: dict[int, tuple[float, bool]] = {}
        for result in score(
            self._streamed, scoring_requests, max_rows=self._max_rows, tokenizer=self.tokenizer
        ):
            if result.error is not None:
                raise result.error
            places = places_of[scoring_requests[result.index][0]]
            for place, suffix_score in zip(places, result.scores, strict=True):
                answers[place] = (suffix_score.sum, suffix_score.is_greedy)
        for place, (text, _context, _continuation) in enumerate(requests):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, answers[place])
        return [answers[place] for place in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each whole text, in windows that are all scored together."""
        windows: list[TokenizedPair] = []
        owners: list[int] = []
        for owner, (text,) in enumerate(request.args for request in requests):
            rolled = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = [make_disjoint_window(window) for window in rolled]
            windows += [(None, context, continuation) for context, continuation in pairs]
            owners += [owner] * len(pairs)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return each context's continuation up to one of its stop texts."""
        end = self.tokenizer.decode([self.eot_token_id], skip_special_tokens=False)
        stops = [handle_stop_sequences(self._settings(request)["until"], eos=end) for request in requests]
        results = generate_many(
            self._streamed,
            [self._request(request, stop) for request, stop in zip(requests, stops, strict=True)],
            packed=self._packed,
            max_rows=self._max_rows,
            tokenizer=self.tokenizer,
        )
        texts: list[str] = []
        for request, stop, result in zip(requests, stops, results, strict=True):
            if result.error is not None:
                raise result.error
            text = postprocess_generated_text(generation=result.text or "", stop=stop, think_end_token=None)
            texts.append(str(text))
            self.cache_hook.add_partial("generate_until", request.args, texts[-1])
        return texts

    def _settings(self, request: Any) -> dict[str, Any]:
        settings: dict[str, Any] = normalize_gen_kwargs(request.args[1], self.max_gen_toks)
        return settings

    def _request(self, request: Any, stop: list[str]) -> GenerationRequest:
        settings = self._settings(request)
        settings.pop("until", None)
        max_new_tokens, do_sample = settings.pop("max_gen_toks"), settings.pop("do_sample")
        temperature = settings.pop("temperature", None)
        ids = self.tok_encode(request.args[0])[-max(1, self.max_length - max_new_tokens) :]
        return GenerationRequest(
            prompt=ids,
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            temperature=temperature if do_sample else None,
            num_beams=settings.pop("num_beams", 1),
            stop=tuple(stop),
            options=settings,
        )
