#![doc = include_str!("model.md")]

mod anthropic;
mod error;
mod exchange;
pub(crate) mod front;
mod openai;
mod relay;
mod request;
mod spec;
mod stream;

use std::sync::Arc;

use backstop::call::Level;
use backstop::config::Completion;
use backstop::operation::OperationRules;
use backstop::{Call, CallError, Engine, Outcome};

use error::ModelError;
use exchange::{ModelAnswer, ModelExchange};
use front::Asked;
pub use spec::{ApiKey, ModelSpec};

use crate::gateway::GatewayError;

/// The models behind the gateway.
#[derive(Debug)]
pub(crate) struct Models {
    pub(crate) engine: Engine,
    exchange: ModelExchange,
    operations: Arc<OperationRules>,
}

impl Models {
    pub(crate) fn new(
        engine: Engine,
        operations: Arc<OperationRules>,
        specs: Vec<ModelSpec>,
        options: Completion,
    ) -> Result<Self, GatewayError> {
        let exchange = ModelExchange::new(specs, options).map_err(|(name, error)| match error {
            None => GatewayError::Twice(name),
            Some(source) => GatewayError::Client {
                service: name,
                source,
            },
        })?;
        Ok(Self {
            engine,
            exchange,
            operations,
        })
    }

    /// Has a request answered, with fallback.
    async fn ask(
        &self,
        asked: &Asked,
    ) -> Result<Outcome<ModelAnswer>, (CallError, Option<ModelError>)> {
        let (request, options) = (&asked.request, &self.exchange.options);
        let rule = self.operations.of(request.endpoint.operation());
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
        call = self.operations.apply(call);
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
