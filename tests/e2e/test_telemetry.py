"""Spans and metrics reach a collector over OTLP, and the context of a trace travels both ways."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from admin import ADMIN, Observed, text
from processes import Gateway, table, wait_until, who

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SERVER, CLIENT, ERROR = 2, 3, 2  # of SpanKind and StatusCode


class Collector:
    """Takes OTLP over HTTP, as a collector would, and keeps what it is given."""

    def __init__(self):
        self.spans, self.metrics, self.headers, self.services = [], {}, [], set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.headers.append(dict(self.headers))
                getattr(collector, "take_" + self.path.rsplit("/", 1)[1])(body)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def take_traces(self, body):
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.services.add(values(resource.resource.attributes)["service.name"])
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)

    def take_metrics(self, body):
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            for scope in resource.scope_metrics:
                self.metrics.update({metric.name: metric for metric in scope.metrics})

    def span(self, name):
        return next((span for span in self.spans if span.name == name), None)

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def values(attributes):
    """Attributes as a dictionary."""
    return {
        pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in attributes
    }


@pytest.fixture
def collector():
    with Collector() as collector:
        yield collector


def configured(write_config, servers, *parts):
    return write_config(table("[health]", interval="1h"), *parts, *who(servers))


class Unobserved(Gateway):
    """A gateway without an administration endpoint."""

    request = Observed.request


def telemetry(collector, **more):
    return table("[telemetry]", endpoint=collector.url, interval="1s", **more)


def ask(gateway, meta, **arguments):
    """One call of the tool with more in its `_meta`."""

    class Params(dict):
        def __setitem__(self, key, value):
            super().__setitem__(key, {**value, **meta} if key == "_meta" else value)

    return gateway.request("tools/call", Params(name="who", arguments=arguments))


def test_a_saved_call_is_one_trace_from_the_client_to_the_server(
    write_config, servers, collector
):
    primary, _ = servers
    sent = telemetry(collector, headers={"x-team": "blue"})
    config = configured(write_config, servers, ADMIN, sent)
    with Observed(config) as gateway:
        ask(gateway, {})
        primary.kill()
        context = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
        answer = ask(gateway, context, about="meta")
        given = json.loads(text(answer))
        wait_until(
            lambda: len([s for s in collector.spans if s.trace_id.hex() == TRACE]) >= 4,
            "the spans of the call",
        )
        wait_until(lambda: "backstop.circuit.state" in collector.metrics, "the metrics")

    spans = [span for span in collector.spans if span.trace_id.hex() == TRACE]
    by_id = {span.span_id: span for span in spans}
    request = next(span for span in spans if span.name == "tools/call who")
    assert request.kind == SERVER and request.parent_span_id.hex() == PARENT
    assert request.trace_state == "vendor=1"
    assert values(request.attributes)["gen_ai.tool.name"] == "who"
    (call,) = [span for span in spans if span.parent_span_id == request.span_id]
    told = values(call.attributes)
    assert told["backstop.outcome"] == "saved" and told["backstop.served_by"] == "secondary"
    assert told["backstop.call"] == answer["result"]["_meta"]["backstop"]["call"]

    below = [span for span in spans if by_id.get(span.parent_span_id) is call]
    attempts = [span for span in below if span.kind == CLIENT]
    failed, good = attempts[0], attempts[-1]
    assert failed.name == "who primary" and failed.status.code == ERROR
    assert values(failed.attributes)["error.type"] == "ConnectionError"
    assert good.name == "who secondary" and good.status.code != ERROR
    assert values(good.attributes)["attempt_type"] == "fallback"
    decisions = [values(span.attributes) for span in below if span.kind != CLIENT]
    assert any(told.get("backstop.action") == "switch_target" for told in decisions), decisions

    # The server was told of the attempt that reached it.
    assert given["traceparent"] == f"00-{TRACE}-{good.span_id.hex()}-01"
    assert given["tracestate"] == "vendor=1"

    assert collector.services == {"backstop"}
    assert all(headers["x-team"] == "blue" for headers in collector.headers)
    durations = collector.metrics["backstop.call.duration"]
    assert durations.unit == "s"
    assert list(durations.histogram.data_points[0].explicit_bounds)[:3] == [0.01, 0.02, 0.05]
    assert "mcp.server.operation.duration" in collector.metrics


def test_without_an_administration_endpoint_metrics_are_sent_all_the_same(
    write_config, servers, collector
):
    config = configured(write_config, servers, telemetry(collector, traces=False))
    with Unobserved(config) as gateway:
        context = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        given = json.loads(text(ask(gateway, context, about="meta")))
        assert given["traceparent"] == context["traceparent"], "passed on as it came"
        wait_until(lambda: "backstop.attempts" in collector.metrics, "the metrics")
    assert not collector.spans


def test_a_client_that_is_not_traced_is_not_and_a_collector_that_is_away_hurts_nobody(
    write_config, servers, collector
):
    with Observed(configured(write_config, servers, ADMIN, telemetry(collector))) as gateway:
        ask(gateway, {"traceparent": f"00-{TRACE}-{PARENT}-00"})
        ask(gateway, {})
        wait_until(lambda: collector.span("tools/call who"), "the span of the second")
        assert all(span.trace_id.hex() != TRACE for span in collector.spans)
        collector.__exit__()
        for _ in range(3):
            assert text(ask(gateway, {})) == "primary"
