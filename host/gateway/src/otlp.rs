//! Spans and metrics for a collector, over OTLP, and the context of a trace on its way through.
//!
//! A request of a client is a span of kind `server` named after its method and what it is about, a child of the
//! span that `traceparent` names in its `_meta` (of a request for a model, in its header). The spans of the engine
//! ([`backstop::trace`]) are below it, and each attempt hands its own context on to the server it asks.
//! Without [`Otlp`] nothing of this happens, and `traceparent` is passed on as it came.
//!
//! What is sent says what `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say of the program.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backstop::config;
use backstop::metrics::DURATION_BUCKETS;
use backstop::trace::TARGET;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, SharedString, Unit};
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{
    ExporterBuildError, MetricExporter, Protocol, SpanExporter, WithExportConfig as _,
    WithHttpConfig as _,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{
    Aggregation, Instrument, InstrumentKind, MeterProviderBuilder, PeriodicReader,
    SdkMeterProvider, Stream,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::json;
use tracing::Span;
use tracing::field::{Empty, display};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Subscriber;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

use crate::envelope::Json;

/// How long the collector may take to a request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What names a context, in `_meta` and in header fields (W3C Trace Context).
const CONTEXT: [&str; 2] = ["traceparent", "tracestate"];

/// Whether there are spans whose context is to be handed on.
static TRACING: AtomicBool = AtomicBool::new(false);

/// What sends spans and metrics.
#[derive(Debug)]
pub struct Otlp {
    traces: Option<SdkTracerProvider>,
    metrics: Option<(SdkMeterProvider, Recorder)>,
}

/// Spans and metrics cannot be sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OtlpError {
    /// The collector's address or a header cannot be used.
    #[error("telemetry cannot be sent to {endpoint:?}: correct `[telemetry] endpoint`")]
    Exporter {
        /// The address, as the configuration has it.
        endpoint: String,
        /// Why.
        #[source]
        source: ExporterBuildError,
    },
}

impl Otlp {
    /// Sends what the configuration wants sent. A collector that cannot be reached is tried again with
    /// every batch, and the log says so; what it misses is lost.
    ///
    /// # Errors
    /// [`OtlpError`] if it says so in a way that cannot be meant.
    pub fn new(config: &config::Telemetry) -> Result<Self, OtlpError> {
        let failed = |source| OtlpError::Exporter {
            endpoint: config.endpoint.written().to_owned(),
            source,
        };
        let base = config.endpoint.value().trim_end_matches('/');
        let headers: HashMap<String, String> = config
            .headers
            .iter()
            .map(|(name, value)| (name.clone(), value.value().to_owned()))
            .collect();
        let resource = Resource::builder().build();
        let resource = if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            Resource::builder().with_service_name("backstop").build()
        } else {
            resource
        };
        let traces = if config.traces {
            let exporter = SpanExporter::builder()
                .with_http()
                .with_protocol(Protocol::HttpBinary)
                .with_endpoint(format!("{base}/v1/traces"))
                .with_headers(headers.clone())
                .with_timeout(TIMEOUT)
                .build()
                .map_err(failed)?;
            let sampler = Box::new(Sampler::TraceIdRatioBased(config.sample));
            let provider = SdkTracerProvider::builder()
                .with_batch_exporter(exporter)
                .with_sampler(Sampler::ParentBased(sampler))
                .with_resource(resource.clone())
                .build();
            Some(provider)
        } else {
            None
        };
        let metrics = if config.metrics {
            let exporter = MetricExporter::builder()
                .with_http()
                .with_protocol(Protocol::HttpBinary)
                .with_endpoint(format!("{base}/v1/metrics"))
                .with_headers(headers)
                .with_timeout(TIMEOUT)
                .build()
                .map_err(failed)?;
            let reader = PeriodicReader::builder(exporter).with_interval(config.interval);
            let made = |builder: MeterProviderBuilder| {
                builder
                    .with_reader(reader.build())
                    .with_resource(resource)
                    .with_view(buckets)
            };
            let recorder = metrics_exporter_opentelemetry::Recorder::builder("backstop");
            let (provider, recorder) = recorder.with_meter_provider(made).build();
            Some((provider, Recorder(recorder)))
        } else {
            None
        };
        Ok(Self { traces, metrics })
    }

    /// The layer that makes spans of the program's, where they are sent. From now on the context of each
    /// attempt is handed on.
    pub fn layer<S>(&self) -> Option<impl Layer<S> + use<S>>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let tracer = self.traces.as_ref()?.tracer("backstop");
        TRACING.store(true, Ordering::Relaxed);
        let layer = tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false);
        Some(layer.with_filter(Targets::new().with_target(TARGET, LevelFilter::INFO)))
    }

    /// The recorder of the process' metrics, where they are sent.
    pub(crate) fn recorder(&self) -> Option<Recorder> {
        self.metrics.as_ref().map(|(_, recorder)| recorder.clone())
    }

    /// Whether metrics are sent.
    pub fn sends_metrics(&self) -> bool {
        self.metrics.is_some()
    }

    /// Sends what has not been sent yet, and ends.
    pub async fn end(self) {
        let ended = tokio::task::spawn_blocking(move || {
            if let Some(traces) = &self.traces {
                let _ = traces.shutdown();
            }
            if let Some((metrics, _)) = &self.metrics {
                let _ = metrics.shutdown();
            }
        });
        // It fails only if the task panicked, and then there is nothing left to wait for.
        let _ = ended.await;
    }
}

/// Durations in the buckets of the conventions, in seconds.
fn buckets(instrument: &Instrument) -> Option<Stream> {
    if instrument.kind() != InstrumentKind::Histogram {
        return None;
    }
    let aggregation = Aggregation::ExplicitBucketHistogram {
        boundaries: DURATION_BUCKETS.to_vec(),
        record_min_max: true,
    };
    Stream::builder()
        .with_unit("s")
        .with_aggregation(aggregation)
        .build()
        .ok()
}

/// Records metrics for a collector. Descriptions are left out: the recorder below gives one to the first
/// series of a name only, and a name with two descriptions is two metrics.
#[derive(Debug, Clone)]
pub(crate) struct Recorder(metrics_exporter_opentelemetry::Recorder);

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.0.register_counter(key, metadata)
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.0.register_gauge(key, metadata)
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.0.register_histogram(key, metadata)
    }
}

/// The span of a client's request, below the one its `_meta` names.
pub(crate) fn request(method: &str, params: Option<&Json>, meta: Option<&Json>) -> Span {
    let span = tracing::info_span!(
        target: TARGET,
        "request",
        otel.name = Empty,
        otel.kind = "server",
        otel.status_code = Empty,
        mcp.method.name = method,
        gen_ai.tool.name = Empty,
        "error.type" = Empty,
    );
    if span.is_disabled() {
        return span;
    }
    let key = match method {
        "tools/call" | "prompts/get" => Some("name"),
        "resources/read" => Some("uri"),
        _ => None,
    };
    let about = key.and_then(|key| params?.text_member(key));
    match &about {
        Some(about) => span.record("otel.name", display(format_args!("{method} {about}"))),
        None => span.record("otel.name", method),
    };
    if let Some(tool) = about.filter(|_| method == "tools/call") {
        span.record("gen_ai.tool.name", tool);
    }
    below(&span, |name| meta?.text_member(name));
    span
}

/// The span of a request for a model, below the one its header names.
pub(crate) fn completion(operation: &str, model: &str, headers: &HeaderMap) -> Span {
    let span = tracing::info_span!(
        target: TARGET,
        "request",
        otel.name = display(format_args!("{operation} {model}")),
        otel.kind = "server",
        otel.status_code = Empty,
        gen_ai.operation.name = operation,
        gen_ai.request.model = model,
        "error.type" = Empty,
    );
    if !span.is_disabled() {
        below(&span, |name| {
            Some(headers.get(name)?.to_str().ok()?.to_owned())
        });
    }
    span
}

/// Makes a span the child of the one a client names.
fn below(span: &Span, named: impl Fn(&str) -> Option<String>) {
    let carrier: HashMap<String, String> = CONTEXT
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), named(name)?)))
        .collect();
    if !carrier.is_empty() {
        // It fails only for a span that has begun, which this one has not.
        let _ = span.set_parent(TraceContextPropagator::new().extract(&carrier));
    }
}

/// Says how a request ended.
pub(crate) fn requested(span: &Span, error: Option<&str>) {
    if let Some(error) = error {
        span.record("error.type", error);
        span.record("otel.status_code", "ERROR");
    }
}

/// The context of the attempt that is being made, where it is to be handed on.
pub(crate) fn context() -> Option<HashMap<String, String>> {
    if !TRACING.load(Ordering::Relaxed) {
        return None;
    }
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&Span::current().context(), &mut carrier);
    carrier.retain(|_, value| !value.is_empty());
    (!carrier.is_empty()).then_some(carrier)
}

/// Parameters with the context of the attempt in their `_meta`, where it is to be handed on.
pub(crate) fn handed_on(params: Option<&Json>) -> Option<Json> {
    let context = context()?;
    let empty = Json::of(&json!({}));
    let params = params.unwrap_or(&empty);
    let meta = params.member("_meta").unwrap_or_else(|| empty.clone());
    let values: Vec<(&str, Option<Json>)> = CONTEXT
        .into_iter()
        .map(|name| (name, context.get(name).map(Json::of)))
        .collect();
    let edits: Vec<_> = values
        .iter()
        .map(|(name, value)| (*name, value.as_ref()))
        .collect();
    let meta = meta.with_members(&edits);
    Some(params.with_members(&[("_meta", Some(&meta))]))
}

/// The header fields with the context of the attempt, where it is to be handed on.
pub(crate) fn header_fields() -> HeaderMap {
    let fields = context().unwrap_or_default();
    let fields = CONTEXT.into_iter().filter_map(|name| {
        let value = HeaderValue::from_str(fields.get(name)?).ok()?;
        Some((HeaderName::from_static(name), value))
    });
    fields.collect()
}
