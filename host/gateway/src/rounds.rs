//! Results of several rounds, for a client of the era that knows none: a server of the newest era asks
//! in its result, the client is asked with requests, and the server is given the answers. What the models
//! answer for a client that cannot sample is answered here for clients of either era.

use std::time::Duration;

use serde_json::json;

use crate::envelope::{Json, Members, Payload};
use crate::exchange::{McpAnswer, McpRequest};
use crate::otlp;
use crate::upstream::{META_CAPABILITIES, Upstream, UpstreamError};

/// Rounds after which a server that keeps asking is left to the client as it is.
const MAX_ROUNDS: usize = 16;
/// How often a call that waits for its client is said to be alive.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// Goes on until the server has all it asks for.
pub(crate) async fn complete(
    upstream: &Upstream,
    request: &McpRequest,
    mut answer: McpAnswer,
    alive: &(dyn Fn() + Send + Sync),
) -> Result<McpAnswer, UpstreamError> {
    let client = request.wiring.client.as_deref();
    let sampling = upstream.sampling();
    let is_the_models = |method: &str| {
        sampling.answers(method, client)
            // What a client of the newest era can do, it says with each request.
            && !request.params.as_ref().is_some_and(declares_sampling)
    };
    for _ in 0..MAX_ROUNDS {
        let Payload::Result(result) = &answer.payload else {
            break;
        };
        if !answer.head.input_required {
            break;
        }
        let asked = result.member("inputRequests");
        let asked = asked.as_ref().and_then(Members::of).unwrap_or_default();
        let asked: Vec<_> = asked
            .0
            .into_iter()
            .map(|(key, question)| {
                let question = Json::of(question);
                let method = question.text_member("method").unwrap_or_default();
                (key, method, question.member("params"))
            })
            .collect();
        // A client of the newest era, which the servers ask directly, is not asked by the gateway: it gets
        // all the questions as they are, but where the models answer every one of them.
        let questioned = client.filter(|client| client.hello().is_some());
        let answered_here = |(_, method, _): &(_, String, _)| is_the_models(method);
        if questioned.is_none() && (asked.is_empty() || !asked.iter().all(answered_here)) {
            break;
        }
        let mut given = Json::of(&json!({}));
        for (key, method, params) in asked {
            let ask = async {
                match questioned {
                    Some(client) if !is_the_models(&method) => {
                        let out = request.wiring.out.clone();
                        client.ask(&method, params, out, Box::new(|_| {})).await
                    }
                    _ => sampling.answer(params.as_ref()).await,
                }
            };
            tokio::pin!(ask);
            let said = loop {
                tokio::select! {
                    said = &mut ask => break said,
                    // The server waits for the client, not we for the server.
                    () = tokio::time::sleep(SIGN_OF_LIFE) => alive(),
                }
            };
            match said {
                Payload::Result(said) => given = given.with_members(&[(&key, Some(&said))]),
                // The newest era has no way to give a server an error for an answer.
                error @ Payload::Error(_) => return Ok(McpAnswer::new(error)),
            }
        }
        let state = result.member("requestState");
        let empty = Json::of(&json!({}));
        let params = request.params.as_ref().unwrap_or(&empty);
        let params = params.with_members(&[
            ("inputResponses", Some(&given)),
            ("requestState", state.as_ref()),
        ]);
        let traced = otlp::handed_on(Some(&params));
        let params = traced.as_ref().unwrap_or(&params);
        let payload = upstream
            .request(&request.method, Some(params), &request.wiring, alive)
            .await?;
        answer = McpAnswer::new(payload);
    }
    Ok(answer)
}

/// Whether the client of a request has said with it that it can sample.
fn declares_sampling(params: &Json) -> bool {
    let meta = params.member("_meta");
    let declared = meta.and_then(|meta| meta.member(META_CAPABILITIES));
    declared.is_some_and(|declared| declared.member("sampling").is_some())
}
