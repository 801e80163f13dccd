#![doc = include_str!("model.md")]

mod anthropic;
mod error;
mod exchange;
pub(crate) mod front;
mod openai;
mod relay;
mod request;
mod sampling;
mod spec;
mod stream;

use std::sync::Arc;

use arc_swap::ArcSwap;
use backstop::call::Level;
use backstop::config::Completion;
use backstop::operation::OperationRules;
use backstop::{Call, CallError, Engine, Outcome};

use error::ModelError;
pub(crate) use exchange::Model;
use exchange::{ModelAnswer, ModelExchange};
use front::Asked;
pub(crate) use sampling::Sampling;
pub use spec::{ApiKey, ModelSpec};

use crate::gateway::GatewayError;

/// The models behind the gateway.
#[derive(Debug)]
pub(crate) struct Models {
    pub(crate) engine: Engine,
    pub(crate) exchange: ModelExchange,
    operations: Arc<ArcSwap<OperationRules>>,
}

impl Models {
    pub(crate) fn new(
        engine: Engine,
        operations: Arc<ArcSwap<OperationRules>>,
        specs: Vec<ModelSpec>,
        options: Completion,
    ) -> Result<Self, GatewayError> {
        Ok(Self {
            engine,
            exchange: ModelExchange::new(specs, options)?,
            operations,
        })
    }

    /// Has a request answered, with fallback.
    async fn ask(
        &self,
        asked: &Asked,
    ) -> Result<Outcome<ModelAnswer>, (CallError, Option<ModelError>)> {
        let request = &asked.request;
        let (options, operations) = (
            self.exchange.options.load_full(),
            self.operations.load_full(),
        );
        let rule = operations.of(request.endpoint.operation());
        let deadline = asked.deadline.or(rule.and_then(|rule| rule.deadline));
        let silence = if request.stream {
            options.first_token
        } else {
            options.answer
        };
        let mut call = Call::new(asked.group.clone(), request.endpoint.operation())
            .level(Level::Model)
            .deadline(deadline.unwrap_or(options.deadline))
            .attempt_timeout(
                rule.and_then(|rule| rule.attempt_timeout)
                    .unwrap_or(silence),
            )
            .detail("model", request.asked_for.as_str())
            .detail("stream", if request.stream { "true" } else { "false" })
            .detail("tokens", request.needs.tokens.to_string());
        call = operations.apply(call);
        if let Some(importance) = asked.importance {
            call = call.importance(importance);
        }
        if let Some(pin) = &request.pin {
            call = call.pin(pin.clone());
        }
        if asked.no_fallback {
            call = call.without_fallback();
        }
        let called = self.engine.call(&self.exchange, call, request).await;
        called.map_err(|failed| (failed.error, failed.raw.and_then(Result::err)))
    }
}
