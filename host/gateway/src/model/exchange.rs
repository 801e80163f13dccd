//! Models behind the engine's seam: how a request is sent to one, and what came of it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use backstop::call::{Attempt, AttemptRecord, RepeatSafety};
use backstop::config::{Completion, ModelApi};
use backstop::detect::{Detector, Signal, TransportFault};
use backstop::registry::Permit;
use backstop::{Exchange, Failure, Kind, Origin};
use bytes::Bytes;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Response, Url};
use tokio::time::{Instant, timeout_at};

use super::anthropic;
use super::error::ModelError;
use super::openai::{self, NoAnswer};
use super::request::{Endpoint, ModelRequest};
use super::spec::{ApiKey, ModelSpec};
use super::stream::{Dialect, Pieces, Progress, Sent, without_key};
use crate::envelope::Json;
use crate::exchange::{chain, classify_error};
use crate::gateway::GatewayError;
use crate::otlp;
use crate::upstream::http::{self, ERROR_BODY_BYTES};
use crate::upstream::{Fault, MAX_MESSAGE_BYTES, UpstreamError};

/// The revision of Anthropic's API that is spoken.
const ANTHROPIC_VERSION: &str = "2023-06-01";
/// What is held back of a stream at most, however long it is to be held back.
const HELD_BYTES: usize = 1024 * 1024;
/// Headers of an answer that a client may want: the provider's name for the request.
const PASSED_ON: [HeaderName; 2] = [
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("request-id"),
];

/// One model and the connections to it.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) spec: ModelSpec,
    clients: http::Clients,
}

/// What a model answered.
#[derive(Debug)]
pub(crate) struct ModelAnswer {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
}

#[derive(Debug)]
pub(crate) enum Body {
    Whole(Bytes),
    Stream(Box<Stream>),
}

/// A stream whose beginning is there.
#[derive(Debug)]
pub(crate) struct Stream {
    /// The events read already.
    pub(crate) held: VecDeque<Bytes>,
    pub(crate) rest: Pieces,
    /// The leave to ask the model: what became of it is known at the stream's end.
    pub(crate) leave: Option<(Permit, Duration)>,
}

/// The models there are at one moment.
#[derive(Debug, Default)]
pub(crate) struct Known {
    by_name: HashMap<Arc<str>, Arc<Model>>,
    /// Highest priority first.
    pub(crate) groups: BTreeMap<Arc<str>, Vec<Arc<Model>>>,
}

/// Carries requests to models for the engine.
#[derive(Debug)]
pub(crate) struct ModelExchange {
    known: ArcSwap<Known>,
    pub(crate) options: ArcSwap<Completion>,
}

impl Known {
    /// These models; one that is as it was before keeps its connections.
    fn new(specs: Vec<ModelSpec>, old: &Self) -> Result<Self, GatewayError> {
        let mut by_name = HashMap::new();
        let mut groups: BTreeMap<Arc<str>, Vec<Arc<Model>>> = BTreeMap::new();
        for spec in specs {
            let name = spec.name.clone();
            let model = match old.by_name.get(&name) {
                Some(old) if old.spec == spec => old.clone(),
                _ => {
                    let clients = http::Clients::new(&spec.base_url);
                    let clients = clients.map_err(|source| GatewayError::Client {
                        service: name.clone(),
                        source,
                    })?;
                    Arc::new(Model { spec, clients })
                }
            };
            groups
                .entry(model.spec.group.clone())
                .or_default()
                .push(model.clone());
            if by_name.insert(name.clone(), model).is_some() {
                return Err(GatewayError::Twice(name));
            }
        }
        for models in groups.values_mut() {
            models.sort_by_key(|model| std::cmp::Reverse(model.spec.priority));
        }
        Ok(Self { by_name, groups })
    }

    pub(crate) fn model(&self, name: &str) -> Option<&Arc<Model>> {
        self.by_name.get(name)
    }
}

impl ModelExchange {
    pub(crate) fn new(specs: Vec<ModelSpec>, options: Completion) -> Result<Self, GatewayError> {
        Ok(Self {
            known: ArcSwap::from_pointee(Known::new(specs, &Known::default())?),
            options: ArcSwap::from_pointee(options),
        })
    }

    /// The models there are now.
    pub(crate) fn known(&self) -> Arc<Known> {
        self.known.load_full()
    }

    /// Makes the models exactly these, around a change to the engine's targets: a target that is there
    /// must be known how to reach.
    pub(crate) fn replace(
        &self,
        specs: Vec<ModelSpec>,
        change: impl FnOnce() -> Result<(), GatewayError>,
    ) -> Result<(), GatewayError> {
        let old = self.known();
        let new = Known::new(specs, &old)?;
        let mut by_name = old.by_name.clone();
        by_name.extend(
            new.by_name
                .iter()
                .map(|(name, model)| (name.clone(), model.clone())),
        );
        let both = Known {
            by_name,
            groups: new.groups.clone(),
        };
        self.known.store(Arc::new(both));
        let changed = change();
        self.known
            .store(if changed.is_ok() { Arc::new(new) } else { old });
        changed
    }

    /// Why a model can never serve a request; `None` if it can.
    pub(crate) fn cannot(&self, model: &Model, request: &ModelRequest) -> Option<String> {
        let (spec, needs) = (&model.spec, &request.needs);
        let anthropic = spec.api == ModelApi::Anthropic;
        let lacks = |what: &str| Some(format!("{:?} takes no {what}", spec.name));
        match request.endpoint {
            Endpoint::Embeddings if anthropic => lacks("embeddings"),
            // Vectors of two models have nothing to do with each other.
            Endpoint::Embeddings => {
                let known = self.known();
                let first = known.groups.get(&spec.group)?;
                let first = first.iter().find(|m| m.spec.api == ModelApi::Openai)?;
                (request.pin.is_none() && first.spec.model != spec.model).then(|| {
                    format!(
                        "{:?} embeds with another model than {:?}",
                        spec.name, first.spec.name
                    )
                })
            }
            Endpoint::Chat if needs.tools && !spec.tools => lacks("tools"),
            Endpoint::Chat if needs.images && !spec.vision => lacks("images"),
            Endpoint::Chat => match (needs.only_openai, &request.begun) {
                (Some(what), _) if anthropic => lacks(what),
                (_, Some(begun)) if !spec.prefill || begun.without.contains(&spec.name) => {
                    lacks("begun answer")
                }
                // Anthropic refuses to go on behind a blank.
                (_, Some(begun)) if anthropic && begun.text.ends_with(char::is_whitespace) => {
                    lacks("begun answer that ends with a blank")
                }
                _ => None,
            },
        }
    }
}

/// Whether a model that found a request too long shows that another will as well.
fn is_no_larger(model: &ModelSpec, than: &ModelSpec) -> bool {
    match (model.context_length, than.context_length) {
        (Some(ours), Some(theirs)) => ours <= theirs,
        _ => model.model == than.model,
    }
}

impl Exchange for ModelExchange {
    type Request = ModelRequest;
    type Answer = ModelAnswer;
    type Error = ModelError;

    async fn send(
        &self,
        attempt: &Attempt,
        request: &ModelRequest,
    ) -> Result<ModelAnswer, ModelError> {
        let name = &attempt.target.name;
        let known = self.known();
        let Some(model) = known.model(name) else {
            let text = "it is no model of the gateway";
            return Err(UpstreamError::fault(name, Fault::NotSent, text).into());
        };
        let mut sent = model.post(request).await?;
        if request.stream {
            return self.begin(attempt, model, request, sent).await;
        }
        let body = http::body(name, &mut sent.response, MAX_MESSAGE_BYTES).await?;
        Ok(ModelAnswer {
            headers: passed_on(sent.response.headers()),
            body: Body::Whole(model.whole(request, body, &sent)?),
        })
    }

    fn classify(
        &self,
        outcome: Result<&ModelAnswer, &ModelError>,
        detector: &Detector,
    ) -> Option<Failure> {
        let error = outcome.err()?;
        Some(match error {
            ModelError::Upstream(error) => classify_error(error, detector),
            ModelError::Stalled { after, .. } => detector.timed_out(*after),
            ModelError::Untranslatable { .. } => {
                let mut failure = Failure::new(Kind::INVALID_PARAMETER, error.to_string());
                failure.origin = Origin::Local;
                failure
            }
            ModelError::Key { .. } => detector.detect(Signal::Transport {
                fault: TransportFault::NotSent,
                message: &chain(error),
            }),
        })
    }

    fn unfit(
        &self,
        request: &ModelRequest,
        group: &str,
        failed: &[AttemptRecord],
    ) -> Vec<Arc<str>> {
        let known = self.known();
        let Some(models) = known.groups.get(group).filter(|_| request.pin.is_none()) else {
            return Vec::new();
        };
        let too_small: Vec<&ModelSpec> = failed
            .iter()
            .filter(|record| record.failure.kind == Kind::CONTEXT_LENGTH)
            .filter_map(|record| Some(&known.model(&record.target)?.spec))
            .collect();
        let (mut unfit, fit): (Vec<_>, Vec<_>) = models.iter().partition(|model| {
            self.cannot(model, request).is_some()
                || too_small
                    .iter()
                    .any(|small| is_no_larger(&model.spec, small))
        });
        let takes = |model: &Model| {
            model
                .spec
                .context_length
                .is_none_or(|most| request.needs.tokens <= most)
        };
        // It is an estimate: where it rules everyone out, the models are left to judge.
        if fit.iter().any(|model| takes(model)) {
            unfit.extend(fit.into_iter().filter(|model| !takes(model)));
        }
        unfit
            .into_iter()
            .map(|model| model.spec.name.clone())
            .collect()
    }

    fn settle(&self, answer: &mut ModelAnswer, permit: Permit, took: Duration) {
        match &mut answer.body {
            Body::Whole(_) => permit.succeeded(Instant::now(), took),
            Body::Stream(stream) => stream.leave = Some((permit, took)),
        }
    }

    fn arguments(&self, request: &ModelRequest) -> Option<Bytes> {
        Some(request.body.bytes())
    }

    /// A model changes nothing in the world.
    fn repeat_safety(&self, _: &str) -> RepeatSafety {
        RepeatSafety::ReadOnly
    }
}

impl ModelExchange {
    /// Reads a stream until it may begin for the client: its first token, or as far as is to be held
    /// back.
    async fn begin(
        &self,
        attempt: &Attempt,
        model: &Model,
        request: &ModelRequest,
        mut sent: Sent,
    ) -> Result<ModelAnswer, ModelError> {
        let name = &model.spec.name;
        if !is_event_stream(sent.response.headers()) {
            let body = http::body(name, &mut sent.response, ERROR_BODY_BYTES).await?;
            return Err(match openai::check(Endpoint::Chat, &body) {
                Err(NoAnswer::Error) => sent.said_error(name, body).into(),
                _ => {
                    let text = "it answered the request for a stream with none";
                    UpstreamError::fault(name, Fault::Garbage, text).into()
                }
            });
        }
        let headers = passed_on(sent.response.headers());
        let dialect = match model.spec.api {
            ModelApi::Openai => Dialect::OpenAi,
            ModelApi::Anthropic => {
                Dialect::Anthropic(anthropic::Translator::new(request.include_usage))
            }
        };
        let options = self.options.load_full();
        let progress = Progress::new(request.needs.choices, options.continuation);
        let mut rest = Pieces::new(name.clone(), sent, dialect, progress, options.idle);
        let Completion {
            hold_back_tokens,
            hold_back,
            ..
        } = *options;
        let (mut held, mut bytes, mut tokens) = (VecDeque::new(), 0, 0_u32);
        let mut until: Option<Instant> = None;
        loop {
            let next = match until {
                None => rest.next().await,
                Some(until) => match timeout_at(until, rest.next()).await {
                    Ok(next) => next,
                    Err(_) => break,
                },
            };
            let Some(piece) = next? else { break };
            bytes += piece.data.len();
            held.push_back(piece.data);
            if !piece.content {
                continue;
            }
            attempt.progressed();
            tokens = tokens.saturating_add(1);
            let enough = match (hold_back_tokens, hold_back.is_zero()) {
                (0, true) => true,
                (0, false) => false,
                (most, _) => tokens >= most,
            };
            if enough || bytes > HELD_BYTES {
                break;
            }
            if !hold_back.is_zero() {
                until.get_or_insert_with(|| Instant::now() + hold_back);
            }
        }
        Ok(ModelAnswer {
            headers,
            body: Body::Stream(Box::new(Stream {
                held,
                rest,
                leave: None,
            })),
        })
    }
}

impl Model {
    /// Sends a request; what is no success is an error.
    async fn post(&self, request: &ModelRequest) -> Result<Sent, ModelError> {
        let key = self.key().await?;
        let (path, body) = self.translated(request)?;
        let accept = if request.stream {
            "text/event-stream"
        } else {
            "application/json"
        };
        let mut headers = self.headers(key.as_deref())?;
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        headers.extend(otlp::header_fields());
        let sent = self
            .clients
            .here()
            .post(below(&self.spec.base_url, path))
            .headers(headers)
            .body(body)
            .send()
            .await;
        self.received(sent, key).await
    }

    /// Asks for the list of models, which costs no tokens: a sign of life.
    pub(crate) async fn probe(&self) -> Result<(), ModelError> {
        let key = self.key().await?;
        let headers = self.headers(key.as_deref())?;
        let models = below(&self.spec.base_url, "models");
        let sent = self
            .clients
            .here()
            .get(models)
            .headers(headers)
            .send()
            .await;
        self.received(sent, key).await.map(drop)
    }

    /// The header fields of every request.
    fn headers(&self, key: Option<&str>) -> Result<HeaderMap, ModelError> {
        let mut headers = self.spec.headers.clone();
        if self.spec.api == ModelApi::Anthropic {
            headers
                .entry("anthropic-version")
                .or_insert(HeaderValue::from_static(ANTHROPIC_VERSION));
        }
        if let Some(key) = key {
            let (header, text) = match self.spec.api {
                ModelApi::Openai => (AUTHORIZATION, format!("Bearer {key}")),
                ModelApi::Anthropic => (HeaderName::from_static("x-api-key"), key.to_string()),
            };
            let mut value = HeaderValue::from_str(&text).map_err(|_| {
                let text = "its key has characters HTTP does not allow";
                UpstreamError::fault(&self.spec.name, Fault::NotSent, text)
            })?;
            value.set_sensitive(true);
            headers.insert(header, value);
        }
        Ok(headers)
    }

    /// What came back; what is no success is an error.
    async fn received(
        &self,
        sent: Result<Response, reqwest::Error>,
        key: Option<Arc<str>>,
    ) -> Result<Sent, ModelError> {
        let name = &self.spec.name;
        let response = sent.map_err(|error| http::fault(name, error))?;
        let mut sent = Sent { response, key };
        let status = sent.response.status();
        if status.is_success() {
            return Ok(sent);
        }
        // The status is the news; a body that breaks off takes nothing from it.
        let body = http::body(name, &mut sent.response, ERROR_BODY_BYTES)
            .await
            .unwrap_or_default();
        Err(UpstreamError::Http {
            service: name.clone(),
            status: status.as_u16(),
            body: without_key(sent.key.as_deref(), body),
            headers: Box::new(sent.response.headers().clone()),
        }
        .into())
    }

    /// The path below the base URL, and the body in the words of the API.
    fn translated(&self, request: &ModelRequest) -> Result<(&'static str, Bytes), ModelError> {
        let begun = request.begun.as_ref().map(|begun| &*begun.text);
        match self.spec.api {
            ModelApi::Openai => {
                let model = Json::of(&self.spec.model);
                let mut edits = vec![("model", Some(&model))];
                let messages = begun.map(|text| with_begun(&request.body, text));
                if let Some(messages) = &messages {
                    edits.push(("messages", Some(messages)));
                }
                let body = request.body.with_members(&edits);
                Ok((request.endpoint.path(), body.bytes()))
            }
            ModelApi::Anthropic => {
                let body = anthropic::request(&request.body, &self.spec.model, begun);
                let body = body.map_err(|reason| ModelError::Untranslatable {
                    model: self.spec.name.clone(),
                    reason,
                })?;
                Ok(("messages", body))
            }
        }
    }

    /// A body that is no stream, checked and in the words of OpenAI's API.
    fn whole(&self, request: &ModelRequest, body: Bytes, sent: &Sent) -> Result<Bytes, ModelError> {
        let name = &self.spec.name;
        let garbage = |error| {
            let text = "what it answered cannot be read";
            UpstreamError::caused(name, Fault::Garbage, text, error)
        };
        match self.spec.api {
            ModelApi::Anthropic => Ok(anthropic::answer(&body).map_err(garbage)?),
            ModelApi::Openai => match openai::check(request.endpoint, &body) {
                Ok(()) => Ok(body),
                Err(NoAnswer::Error) => Err(sent.said_error(name, body).into()),
                Err(NoAnswer::Unreadable(error)) => Err(garbage(error).into()),
                Err(NoAnswer::Empty) => {
                    let text = "its answer is empty";
                    Err(UpstreamError::fault(name, Fault::Garbage, text).into())
                }
            },
        }
    }

    async fn key(&self) -> Result<Option<Arc<str>>, ModelError> {
        match &self.spec.key {
            ApiKey::None => Ok(None),
            ApiKey::Text(text) => Ok(Some(text.clone())),
            ApiKey::File(path) => match tokio::fs::read_to_string(path).await {
                Ok(text) => Ok(Some(text.trim().into())),
                Err(source) => Err(ModelError::Key {
                    model: self.spec.name.clone(),
                    source,
                }),
            },
        }
    }
}

/// The messages with the beginning of the answer behind them.
fn with_begun(body: &Json, text: &str) -> Json {
    let begun = serde_json::json!({ "role": "assistant", "content": text });
    let messages = body
        .member("messages")
        .map(|messages| messages.elements())
        .unwrap_or_default();
    Json::of(
        &messages
            .into_iter()
            .chain([Json::of(&begun)])
            .collect::<Vec<_>>(),
    )
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| {
            value
                .trim_start()
                .to_ascii_lowercase()
                .starts_with("text/event-stream")
        })
}

fn passed_on(headers: &HeaderMap) -> HeaderMap {
    PASSED_ON
        .iter()
        .filter_map(|name| Some((name.clone(), headers.get(name)?.clone())))
        .collect()
}

/// A path below a base URL, whose query stays.
fn below(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}/{path}", base.path().trim_end_matches('/')));
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_keeps_its_query_and_takes_a_slash_or_none() {
        for (base, whole) in [
            ("http://a/v1", "http://a/v1/embeddings"),
            ("http://a/v1/", "http://a/v1/embeddings"),
            ("http://a", "http://a/embeddings"),
            (
                "http://a/openai/d?api-version=1",
                "http://a/openai/d/embeddings?api-version=1",
            ),
        ] {
            assert_eq!(below(&base.parse().unwrap(), "embeddings").as_str(), whole);
        }
    }

    #[test]
    fn a_begun_answer_stands_behind_the_messages() {
        let body = Json::parse(r#"{"messages":[{"role":"user","content":"x"}]}"#).unwrap();
        assert_eq!(
            with_begun(&body, "Once").as_bytes(),
            br#"[{"role":"user","content":"x"},{"content":"Once","role":"assistant"}]"#
        );
    }
}
