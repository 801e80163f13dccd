//! Results of several rounds, for a client of the era that knows none: a server of the newest era asks
//! in its result, the client is asked with requests, and the server is given the answers.

use std::time::Duration;

use serde_json::json;

use crate::envelope::{Json, Members, Payload};
use crate::exchange::{McpAnswer, McpRequest};
use crate::upstream::{Upstream, UpstreamError};

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
    let Some(client) = &request.wiring.client else {
        return Ok(answer);
    };
    for _ in 0..MAX_ROUNDS {
        let Payload::Result(result) = &answer.payload else {
            break;
        };
        if !answer.head.input_required || client.hello().is_none() {
            break;
        }
        let asked = result.member("inputRequests");
        let asked = asked.as_ref().and_then(Members::of).unwrap_or_default();
        let mut given = Json::of(&json!({}));
        for (key, question) in asked.0 {
            let question = Json::of(question);
            let method = question.text_member("method").unwrap_or_default();
            let out = request.wiring.out.clone();
            let ask = client.ask(&method, question.member("params"), out, Box::new(|_| {}));
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
        let payload = upstream
            .request(&request.method, Some(&params), &request.wiring, alive)
            .await?;
        answer = McpAnswer::new(payload);
    }
    Ok(answer)
}
