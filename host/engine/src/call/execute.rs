//! Any asynchronous operation as a call: what an embedder without a protocol of its own uses.

use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;

use super::{Attempt, Call, Failed, Outcome, RepeatSafety};
use crate::detect::{Detector, Signal};
use crate::engine::Engine;
use crate::exchange::Exchange;
use crate::failure::Failure;
use crate::registry::Target;

impl Engine {
    /// Makes a call of any asynchronous operation.
    ///
    /// `operation` is run once per attempt, with the target to ask. An error is classified by the
    /// detector, by the name of its type and by its message, its sources included; the operation must
    /// not retry by itself. For finer classification implement [`Exchange`] and use [`Engine::call`].
    ///
    /// ```
    /// use backstop::{Call, Engine, registry::TargetSpec};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let engine = Engine::builder().build()?;
    /// engine.registry().register(TargetSpec::service("primary", "search"))?;
    ///
    /// let outcome = engine
    ///     .execute(Call::new("search", "lookup"), |target| async move {
    ///         Ok::<_, std::io::Error>(format!("answered by {}", target.name))
    ///     })
    ///     .await?;
    /// assert_eq!(outcome.answer, "answered by primary");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Failed`] with the first cause, every attempt and every strategy asked, and the last error.
    pub async fn execute<T, E, F, Fut>(
        &self,
        call: Call,
        operation: F,
    ) -> Result<Outcome<T>, Failed<T, E>>
    where
        T: Send,
        E: std::error::Error + Send + 'static,
        F: Fn(Arc<Target>) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, E>> + Send,
    {
        let safety = call.safety.unwrap_or_default();
        self.call(
            &Closure {
                operation,
                safety,
                outcome: PhantomData,
            },
            call,
            &(),
        )
        .await
    }
}

struct Closure<F, T, E> {
    operation: F,
    safety: RepeatSafety,
    outcome: PhantomData<fn() -> (T, E)>,
}

impl<F, Fut, T, E> Exchange for Closure<F, T, E>
where
    T: Send,
    E: std::error::Error + Send + 'static,
    F: Fn(Arc<Target>) -> Fut + Send + Sync,
    Fut: Future<Output = Result<T, E>> + Send,
{
    type Request = ();
    type Answer = T;
    type Error = E;

    async fn send(&self, attempt: &Attempt, (): &()) -> Result<T, E> {
        (self.operation)(attempt.target.clone()).await
    }

    fn classify(&self, outcome: Result<&T, &E>, detector: &Detector) -> Option<Failure> {
        let error = outcome.err()?;
        Some(detector.detect(Signal::Error {
            class: std::any::type_name::<E>(),
            message: &chain(error),
        }))
    }

    fn repeat_safety(&self, _: &str) -> RepeatSafety {
        self.safety
    }
}

/// An error and its sources in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let part = cause.to_string();
        // Many errors repeat their source's message in their own.
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        source = cause.source();
    }
    text
}
