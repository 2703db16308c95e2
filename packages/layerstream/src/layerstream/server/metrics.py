"""Figures for Prometheus: requests by address and status, and what the service does now.

The registry belongs to one app, so that two apps in one process do not mix.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..uses.serving.protocol import Service
from .answering import CHAT, COMPLETIONS

CLIENT_GONE = 499
"""The status of a request whose client did not wait for the answer; none is sent."""

_KNOWN = frozenset({CHAT, COMPLETIONS})


class ServiceCollector(Collector):
    """Reads a service's status whenever it is asked for figures."""

    def __init__(self, service: Service) -> None:
        """Ask `service`."""
        self._service = service

    def collect(self) -> Iterable[Metric]:
        """Return the figures."""
        status = self._service.status()
        gauges = {
            "requests_running": ("Requests that share the sweeps now.", status.running),
            "requests_waiting": ("Requests in the queue.", status.waiting),
            "queue_capacity": ("Requests that the queue can hold.", status.most_waiting),
            "sweep_seconds": ("Seconds per sweep, over the last minute of work.", status.sweep_s),
            "estimated_wait_seconds": (
                "Estimated seconds until the first token of a new request.",
                status.wait_s,
            ),
            "tokens_per_second": ("Tokens per second of all running requests.", status.tokens_per_s),
            "prefix_cache_bytes": ("Memory of the prefix cache.", status.prefix_bytes),
        }
        counters = {
            "prompt_tokens": ("Tokens of all prompts admitted.", status.prompt_tokens),
            "generated_tokens": ("Tokens generated.", status.generated_tokens),
            "reused_tokens": ("Tokens of prompts that were not computed again.", status.reused_tokens),
            "sweeps": ("Visits of all blocks.", status.sweeps),
        }
        for name, (words, value) in gauges.items():
            yield GaugeMetricFamily(f"layerstream_{name}", words, value)
        for name, (words, value) in counters.items():
            yield CounterMetricFamily(f"layerstream_{name}", words, value)
        answers = CounterMetricFamily("layerstream_answers", "Requests that have ended.", labels=["outcome"])
        for outcome in ("answered", "failed", "cancelled"):
            answers.add_metric([outcome], getattr(status, outcome))
        yield answers


class RequestCounter:
    """Counts requests by address and status; an ASGI middleware."""

    def __init__(self, app: ASGIApp, *, registry: CollectorRegistry) -> None:
        """Stand before `app`."""
        self._app = app
        self._requests = Counter(
            "layerstream_http_requests",
            "Requests by address and status.",
            ["endpoint", "status"],
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and count it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = CLIENT_GONE

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        has_failed = True
        try:
            await self._app(scope, receive, noted)
            has_failed = False
        finally:
            if has_failed and status == CLIENT_GONE:
                status = 500
            self._requests.labels(_endpoint(scope), status).inc()


def _endpoint(scope: Scope) -> str:
    """Return the address as its route has it: clients must not be able to make up names of figures."""
    path = getattr(scope.get("route"), "path", None)
    return str(path) if path else scope["path"] if scope["path"] in _KNOWN else "other"
