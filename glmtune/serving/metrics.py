"""What is counted, for Prometheus; in a registry of our own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from glmtune.serving.asking import Service
from glmtune.serving.calls import Call

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Metrics:
    """The counts of one server."""

    def __init__(self, service: Service) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "glmtune_requests", "Requests that were answered.", ["model", "route", "status"], registry=registry
        )
        self._tokens = Counter("glmtune_tokens", "Tokens of prompts and answers.", ["model", "kind"], registry=registry)
        self._first = Histogram(
            "glmtune_time_to_first_token_seconds",
            "From the request to the first token of its answer.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._duration = Histogram(
            "glmtune_request_seconds", "From the request to its end.", ["route"], buckets=_SECONDS, registry=registry
        )
        for name, meaning in (
            ("running", "Requests that are being answered."),
            ("waiting", "Requests that are in the queue."),
            ("tokens", "Tokens of prompts and answers in flight."),
        ):
            gauge = Gauge(f"glmtune_{name}_now", meaning, registry=registry)
            gauge.set_function(lambda name=name: vars(service.load())[name])  # type: ignore[misc]

    def count(self, call: Call, route: str, status: int) -> None:
        """Count a request that has ended."""
        self._requests.labels(call.model, route, str(status)).inc()
        self._duration.labels(route).observe(call.seconds)
        if call.model:
            self._tokens.labels(call.model, "prompt").inc(call.prompt_tokens)
            self._tokens.labels(call.model, "completion").inc(call.completion_tokens)
        if call.first_token is not None:
            self._first.labels(call.model).observe(call.first_token - call.started)

    def text(self) -> bytes:
        """Return all counts as Prometheus reads them."""
        return generate_latest(self._registry)
