"""Settings refuse values that make no server."""

from __future__ import annotations

import pytest
from kit.fake_service import FakeService

from layerstream.errors import PlanError
from layerstream.server.model_card import model_id
from layerstream.server.settings import ServerSettings


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_n": 0}, "max_n must be at least 1; got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, or None; got 0"),
        ({"body_s": 0}, "body_s must be above 0; got 0"),
        ({"max_top_logprobs": -1}, "max_top_logprobs must be at least 0"),
        ({"api_key": ""}, "api_key must be"),
        ({"api_key": "schlüssel"}, "api_key must be"),
    ],
)
def test_wrong_setting_is_refused(values, words):
    with pytest.raises(PlanError, match=words):
        ServerSettings(**values)


def test_model_has_a_name_without_its_folder(tmp_path):
    folder = tmp_path / "Qwen3-8B"
    folder.mkdir()
    settings = ServerSettings()
    for name, shown in [
        (str(folder), "Qwen3-8B"),
        (f"{folder}/", "Qwen3-8B"),
        ("/no/longer/there", "there"),
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("gpt2", "gpt2"),
    ]:
        with FakeService(model_name=name) as service:
            assert model_id(service, settings) == shown
    with FakeService(model_name="/some/where") as service:
        assert model_id(service, ServerSettings(model_id="mine")) == "mine"
