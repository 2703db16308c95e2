"""The depth of a chain follows what was measured."""

from __future__ import annotations

import pytest

from layerstream.planning.drafting import MOST_DRAFTED, expected_tokens
from layerstream.speculation.depth import DepthControl


def after(*, acceptance: float, draft_s: float, token_s: float, sweeps: int = 30) -> DepthControl:
    """Return a control that has seen sweeps of 1 s, plus `token_s` for each verified token."""
    control = DepthControl()
    for number in range(sweeps):
        depth = control.choose(MOST_DRAFTED) or 1 + number % 3
        accepted = min(depth, int(acceptance * (depth + 1)))
        control.record(
            tokens=depth,
            depth=depth,
            judged=min(depth, accepted + 1),
            accepted=accepted,
            draft_s=draft_s * depth,
            sweep_s=1.0 + token_s * depth,
        )
    return control


def test_expected_tokens_are_the_accepted_ones_and_the_targets_next() -> None:
    assert expected_tokens(0.0, 8) == 1.0
    assert expected_tokens(1.0, 8) == 9.0
    assert expected_tokens(0.5, 2) == pytest.approx(1 + 0.5 + 0.25)


def test_free_drafts_that_are_always_right_are_as_deep_as_can_be() -> None:
    assert after(acceptance=1.0, draft_s=0.0, token_s=0.0).choose(MOST_DRAFTED) == MOST_DRAFTED


def test_costly_drafts_are_shallower_and_useless_ones_are_none() -> None:
    cheap, costly = (after(acceptance=0.8, draft_s=seconds, token_s=0.0) for seconds in (0.01, 0.3))
    assert 0 < costly.choose(MOST_DRAFTED) < cheap.choose(MOST_DRAFTED)
    assert after(acceptance=0.0, draft_s=2.0, token_s=0.0).choose(MOST_DRAFTED) == 0


def test_verification_that_takes_long_limits_the_depth() -> None:
    cheap, costly = (after(acceptance=0.9, draft_s=0.0, token_s=seconds) for seconds in (0.0, 0.5))
    assert costly.choose(MOST_DRAFTED) < cheap.choose(MOST_DRAFTED)


def test_the_depth_never_exceeds_what_is_left_to_generate() -> None:
    control = DepthControl()
    assert [control.choose(most) for most in (-1, 0, 1)] == [0, 0, 1]
    assert DepthControl(fixed_tokens=8).choose(5) == 5
    assert DepthControl(fixed_tokens=8).choose(50) == 8


def test_what_follows_a_refused_token_is_not_judged() -> None:
    control = DepthControl()
    for _ in range(60):
        control.record(tokens=10, depth=10, judged=5, accepted=4, draft_s=0.1, sweep_s=1.0)
    assert control.acceptance == pytest.approx(0.8, abs=0.01)


def test_a_draft_that_did_not_pay_is_tried_again_now_and_then() -> None:
    control = after(acceptance=0.0, draft_s=2.0, token_s=0.0)
    chosen = []
    for _ in range(20_000):
        chosen.append(control.choose(MOST_DRAFTED))
        count = chosen[-1]
        control.record(
            tokens=count, depth=count, judged=min(count, 1), accepted=0, draft_s=2.0 * count, sweep_s=1.0
        )
    assert set(chosen) == {0, 4}
    assert 500 < sum(map(bool, chosen)) < 700


def test_a_tree_is_less_deep_than_it_has_tokens() -> None:
    chains, trees = DepthControl(), DepthControl()
    for control, depth in ((chains, 8), (trees, 2)):
        for tokens in (8, 16, 4) * 10:
            depth_now = tokens * depth // 8
            control.record(
                tokens=tokens,
                depth=depth_now,
                judged=depth_now,
                accepted=depth_now,
                draft_s=0.05 * tokens,
                sweep_s=1.0 + 0.05 * tokens,
            )
    assert chains.choose(MOST_DRAFTED) == MOST_DRAFTED
    assert trees._tokens_per_s(64, 0) < chains._tokens_per_s(64, 0) / 2


def test_tokens_that_are_drafted_already_are_verified_too() -> None:
    control = after(acceptance=0.8, draft_s=0.4, token_s=0.0)
    without = control.choose(MOST_DRAFTED)
    assert control.choose(MOST_DRAFTED, ready=without + 5) >= without + 5


def test_tokens_drafted_during_a_sweep_do_not_make_drafting_look_cheap() -> None:
    control = DepthControl()
    for tokens in (8, 16, 4) * 10:
        control.record(
            tokens=tokens,
            ready=tokens - 1,
            depth=tokens,
            judged=tokens,
            accepted=min(tokens, 3),
            draft_s=2.0,
            sweep_s=1.0,
        )
    assert control.choose(MOST_DRAFTED) == 0
