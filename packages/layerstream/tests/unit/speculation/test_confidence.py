"""How sure a draft is."""

from __future__ import annotations

from math import exp

import pytest

from layerstream.speculation.confidence import Confidence

CLOSE = [1.0, 0.9, 0.2]


def test_chances_add_up_and_keep_their_order() -> None:
    chances = [exp(each) for each in Confidence().log_chances(CLOSE)]
    assert sum(chances) == pytest.approx(1.0)
    assert chances == sorted(chances, reverse=True)


def test_a_draft_that_is_right_becomes_surer() -> None:
    confidence = Confidence()
    before = confidence.log_chances(CLOSE)[0]
    for _ in range(20):
        confidence.learn(CLOSE, 0)
    assert exp(confidence.log_chances(CLOSE)[0]) > exp(before)
    assert confidence.temperature == 0.0625


def test_a_draft_that_is_often_wrong_becomes_less_sure() -> None:
    confidence = Confidence()
    for number in range(30):
        confidence.learn([5.0, 4.0, 3.0], number % 3)
    assert confidence.temperature == 1.0


def test_one_surprise_outweighs_many_confirmations_of_what_was_sure_anyway() -> None:
    confidence = Confidence()
    for _ in range(50):
        confidence.learn([9.0, 1.0], 0)
    confidence.learn([4.0, 1.0], 1)
    assert confidence.temperature == 1.0
