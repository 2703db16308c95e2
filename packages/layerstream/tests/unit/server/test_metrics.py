"""Figures for Prometheus."""

from __future__ import annotations

import asyncio

from kit.fake_service import FakeService
from kit.http_server import client_of, in_loop
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from layerstream.server.app import build_app
from layerstream.server.settings import ServerSettings


async def figures_of(client) -> dict[tuple, float]:
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(answer.text)
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


@in_loop
async def test_figures_tell_what_the_service_does():
    with FakeService(sweeps=0, most_running=1, failures={"bad": OSError("disk")}) as service:
        async with client_of(build_app(service, settings=ServerSettings())) as client:
            bodies = [{"prompt": text, "max_tokens": 3} for text in ("abc", "de", "bad")]
            requests = [asyncio.ensure_future(client.post("/v1/completions", json=body)) for body in bodies]
            await asyncio.to_thread(service.wait_until, lambda status: status.waiting == 3)
            waiting = await figures_of(client)
            service.allow_sweeps(100)
            await asyncio.gather(*requests)
            done = await figures_of(client)
    assert waiting[("layerstream_requests_waiting",)] == 3
    assert waiting[("layerstream_queue_capacity",)] == 64
    assert waiting[("layerstream_estimated_wait_seconds",)] == 4 * 2
    assert done[("layerstream_requests_waiting",)] == 0
    assert done[("layerstream_answers_total", "answered")] == 2
    assert done[("layerstream_answers_total", "failed")] == 1
    assert done[("layerstream_prompt_tokens_total",)] == 3 + 2 + 3
    assert done[("layerstream_generated_tokens_total",)] == 3 + 3 + 1
    assert done[("layerstream_sweeps_total",)] == 7
    assert done[("layerstream_sweep_seconds",)] == 2
    assert done[("layerstream_http_requests_total", "/v1/completions", "200")] == 2
    assert done[("layerstream_http_requests_total", "/v1/completions", "500")] == 1


@in_loop
async def test_the_model_tells_how_long_a_new_request_would_take():
    with FakeService(sweeps=0, most_running=1) as service:
        async with client_of(build_app(service, settings=ServerSettings())) as client:
            idle = (await client.get("/v1/models")).json()["data"][0]
            request = asyncio.ensure_future(client.post("/v1/completions", json={"prompt": "abc"}))
            await asyncio.to_thread(service.wait_until, lambda status: status.waiting == 1)
            busy = (await client.get("/v1/models/fake/tiny")).json()
            service.allow_sweeps(100)
            await request
    # a sweep of two seconds until the first token, and 99 for the others
    assert (idle["estimated_wait_s"], idle["estimated_100_tokens_s"]) == (2, 200)
    assert (busy["queue_length"], busy["estimated_wait_s"], busy["estimated_100_tokens_s"]) == (1, 4, 202)


@in_loop
async def test_clients_cannot_make_up_figures():
    with FakeService() as service:
        app = build_app(service, settings=ServerSettings(api_key="secret"))
        async with client_of(app, headers={"authorization": "Bearer secret"}) as client:
            for number in range(5):
                await client.get(f"/made/up/{number}")
                await client.get(f"/v1/models/made/up/{number}")
                await client.get(f"/made/up/{number}", headers={"authorization": ""})
            await client.post("/v1/completions", headers={"authorization": ""})
            figures = await figures_of(client)
    counted = {
        labels
        for name, *labels in ((k[0], k[1:]) for k in figures)
        if "http_requests_total" in name
        for labels in labels
    }
    assert counted == {
        ("404", "other"),
        ("401", "other"),
        ("/v1/models/{name:path}", "404"),
        ("/v1/completions", "401"),
    }


@in_loop
async def test_two_apps_do_not_share_their_figures():
    with FakeService() as service:
        first, second = (build_app(service, settings=ServerSettings()) for _ in range(2))
        async with client_of(first) as client:
            await client.get("/health")
        async with client_of(second) as client:
            figures = await figures_of(client)
    assert not [name for name in figures if "http_requests_total" in name[0]]
    assert not [family for family in REGISTRY.collect() if "layerstream" in family.name]
