from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layerstream_compare.worker.agreement import AgreementMeter, divergences


def _agreement(reference: torch.Tensor, variant: torch.Tensor, following: list[int] | None = None):
    meter = AgreementMeter("prose")
    meter.feed(reference, variant, torch.tensor(following or [0] * reference.shape[0]))
    return meter


def _log(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def test_equal_logits_agree_exactly():
    logits = torch.randn(5, 11, generator=torch.Generator().manual_seed(0)).half()
    result = _agreement(logits, logits.clone()).finish()
    assert (result.kl_mean, result.kl_p99, result.kl_max) == (0.0, 0.0, 0.0)
    assert (result.reverse_kl_mean, result.reverse_kl_max) == (0.0, 0.0)
    assert (result.top1, result.top1_standard_error, result.max_logit_difference) == (1.0, 0.0, 0.0)
    assert result.perplexity_ratio == 1.0
    assert result.is_bit_exact
    assert result.positions == 5


def test_agreement_matches_a_case_computed_by_hand():
    # p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4): KL = 1/2 ln 2 + 1/4 ln 1/2 = 1/4 ln 2 both ways;
    # the next token is the second
    meter = _agreement(_log(0.5, 0.25, 0.25), _log(0.25, 0.5, 0.25), [1])
    result = meter.finish()
    assert result.kl_mean == pytest.approx(0.25 * math.log(2), rel=1e-12)
    assert result.reverse_kl_mean == pytest.approx(0.25 * math.log(2), rel=1e-12)
    assert result.top1 == 0.0
    assert result.perplexity_ratio == pytest.approx(0.5, rel=1e-12)
    assert result.max_logit_difference == pytest.approx(math.log(2), rel=1e-12)
    assert not result.is_bit_exact
    assert meter.margins == pytest.approx([0.25])


@given(p=st.floats(0.01, 0.99), shift=st.floats(-5, 5))
def test_a_constant_added_to_one_logit_matches_the_closed_form(p: float, shift: float):
    # q is p with one logit moved by c: log q = log p + c [that token] - log Z, so KL(p||q) = log Z - p c
    reference = _log(p, 1 - p)
    variant = reference + torch.tensor([[shift, 0.0]], dtype=torch.float64)
    log_z = math.log(p * math.exp(shift) + 1 - p)
    result = _agreement(reference, variant).finish()
    assert result.kl_mean == pytest.approx(log_z - p * shift, abs=1e-12)
    q = p * math.exp(shift) / math.exp(log_z)
    assert result.reverse_kl_mean == pytest.approx(q * shift - log_z, abs=1e-12)
    assert result.perplexity_ratio == pytest.approx(math.exp(log_z - shift), rel=1e-9)


@given(gap=st.floats(-8, 8), temperature=st.floats(0.2, 5))
def test_a_temperature_on_two_tokens_matches_the_closed_form(gap: float, temperature: float):
    reference = torch.tensor([[gap, 0.0]], dtype=torch.float64)
    result = _agreement(reference, reference / temperature).finish()

    # log p = -log(1 + exp(-gap)), log (1 - p) = -log(1 + exp(gap)); written so that nothing cancels
    def logs(logit: float) -> tuple[float, float]:
        return -math.log1p(math.exp(-logit)), -math.log1p(math.exp(logit))

    p, q = logs(gap), logs(gap / temperature)
    expected = sum(math.exp(of_p) * (of_p - of_q) for of_p, of_q in zip(p, q, strict=True))
    assert result.kl_mean == pytest.approx(expected, abs=1e-10)


def test_a_constant_on_every_logit_keeps_the_distribution_but_is_not_bit_exact():
    reference = torch.randn(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    result = _agreement(reference, reference + 3.0).finish()
    assert result.kl_max == pytest.approx(0.0, abs=1e-14)
    assert result.top1 == 1.0
    assert result.max_logit_difference == pytest.approx(3.0)
    assert not result.is_bit_exact


def test_divergence_is_not_clipped():
    reference, variant = torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]])
    assert _agreement(reference, variant).finish().kl_max == pytest.approx(200.0)


def test_a_token_with_probability_0_in_the_variant_only_diverges_infinitely():
    log_p, log_q = _log(0.5, 0.5), _log(1.0, 0.0)
    assert divergences(log_p, log_q).item() == math.inf
    assert divergences(log_q, log_p).item() == pytest.approx(math.log(2))


def test_tokens_with_probability_0_in_both_models_do_not_count():
    masked = torch.tensor([[1.0, 2.0, -math.inf]])
    result = _agreement(masked, masked.clone()).finish()
    assert (result.kl_max, result.max_logit_difference, result.is_bit_exact) == (0.0, 0.0, True)


def test_chunked_input_gives_the_same_result_as_one_chunk():
    generator = torch.Generator().manual_seed(2)
    reference, variant = (torch.randn(37, 50, generator=generator) for _ in range(2))
    following = torch.randint(50, (37,), generator=generator)
    at_once = AgreementMeter("prose")
    at_once.feed(reference, variant, following)
    in_chunks = AgreementMeter("prose")
    for start in range(0, 37, 16):
        rows = slice(start, start + 16)
        in_chunks.feed(reference[rows], variant[rows], following[rows])
    whole, chunked = at_once.finish(), in_chunks.finish()
    assert (whole.kl_mean, whole.kl_p99, whole.kl_max, whole.top1) == (
        chunked.kl_mean,
        chunked.kl_p99,
        chunked.kl_max,
        chunked.top1,
    )
    assert whole.perplexity_ratio == pytest.approx(chunked.perplexity_ratio, rel=1e-12)
    assert at_once.margins == in_chunks.margins


def test_the_99th_percentile_of_101_positions_is_the_second_largest():
    reference = torch.zeros(101, 2, dtype=torch.float64)
    variant = torch.zeros(101, 2, dtype=torch.float64)
    variant[:, 0] = torch.arange(101) / 100
    by_position = divergences(reference.log_softmax(-1), variant.log_softmax(-1))
    assert _agreement(reference, variant).finish().kl_p99 == pytest.approx(by_position[99].item(), rel=1e-12)


def test_the_standard_error_of_top1_is_binomial():
    reference = torch.tensor([[1.0, 0.0]] * 4)
    variant = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]])
    result = _agreement(reference, variant).finish()
    assert result.top1 == 0.75
    assert result.top1_standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 4))


def test_the_same_numbers_in_another_dtype_are_not_bit_exact():
    logits = torch.tensor([[1.0, 2.0]])
    result = _agreement(logits, logits.half()).finish()
    assert result.kl_max == 0.0
    assert not result.is_bit_exact


def test_nan_is_rejected_with_the_name_of_the_model():
    good, bad = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, math.nan]])
    with pytest.raises(ValueError, match="the variant's logits contain NaN on the text 'prose'"):
        _agreement(good, bad)


def test_mismatched_shapes_are_rejected():
    with pytest.raises(ValueError, match="shapes do not match"):
        _agreement(torch.zeros(2, 3), torch.zeros(2, 4))


def test_an_agreement_without_positions_is_rejected():
    with pytest.raises(ValueError, match="no position of the text 'answer'"):
        AgreementMeter("answer").finish()
