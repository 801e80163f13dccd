//! Answers of OpenAI's API, read as far as needed to know whether they are whole; their bytes are
//! passed on.

use std::borrow::Cow;
use std::collections::VecDeque;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::request::Endpoint;
use super::stream::{Broken, Piece, Progress};
use crate::envelope::Members;

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow, default)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(default)]
    index: Option<u64>,
    #[serde(borrow, default)]
    delta: Option<Members<'a>>,
    #[serde(borrow, default)]
    finish_reason: Option<Cow<'a, str>>,
}

/// What OpenRouter and others say where a provider broke off.
const FINISHED_BY_ERROR: &str = "error";

/// Reads one event of a stream.
pub(crate) fn take(
    data: &Bytes,
    ready: &mut VecDeque<Piece>,
    progress: &mut Progress,
) -> Result<(), Broken> {
    if data.trim_ascii() == b"[DONE]" {
        progress.done = progress.is_whole();
        return if progress.done {
            Ok(())
        } else {
            Err(Broken::TooEarly)
        };
    }
    let chunk: Chunk<'_> = serde_json::from_slice(data).map_err(Broken::Unreadable)?;
    if chunk.error.is_some_and(|error| error.get() != "null") {
        return Err(Broken::Error(data.clone()));
    }
    let mut content = false;
    for choice in chunk.choices.into_iter().flatten() {
        if choice.finish_reason.as_deref() == Some(FINISHED_BY_ERROR) {
            return Err(Broken::Error(data.clone()));
        }
        let finished = choice
            .finish_reason
            .is_some_and(|reason| !reason.is_empty());
        content |= finished;
        progress.saw(choice.index.unwrap_or(0), finished);
        for (name, value) in choice.delta.into_iter().flat_map(|delta| delta.0) {
            if name == "role" || matches!(value.get(), "null" | "\"\"" | "[]" | "{}") {
                continue;
            }
            content = true;
            match &*name {
                "content" => {
                    if let Ok(text) = serde_json::from_str::<Cow<'_, str>>(value.get()) {
                        progress.said(&text);
                    }
                }
                _ => progress.mixed = true,
            }
        }
    }
    ready.push_back(Piece {
        data: one_line(data),
        content,
    });
    Ok(())
}

/// JSON without line ends, which would end an event's data. Inside JSON text they can only be white
/// space.
fn one_line(data: &Bytes) -> Bytes {
    if !data.contains(&b'\n') {
        return data.clone();
    }
    data.iter()
        .map(|byte| if *byte == b'\n' { b' ' } else { *byte })
        .collect::<Vec<_>>()
        .into()
}

/// Why a body is no whole answer.
#[derive(Debug)]
pub(crate) enum NoAnswer {
    Unreadable(serde_json::Error),
    /// It is an error, although its status is that of a success.
    Error,
    Empty,
}

/// Checks a body that is no stream.
pub(crate) fn check(endpoint: Endpoint, body: &[u8]) -> Result<(), NoAnswer> {
    #[derive(Deserialize)]
    struct Whole<'a> {
        #[serde(borrow, default)]
        choices: Option<Vec<Finished<'a>>>,
        #[serde(borrow, default)]
        data: Option<&'a RawValue>,
        #[serde(borrow, default)]
        error: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Finished<'a> {
        #[serde(borrow, default)]
        finish_reason: Option<Cow<'a, str>>,
    }
    let whole: Whole<'_> = serde_json::from_slice(body).map_err(NoAnswer::Unreadable)?;
    if whole.error.is_some_and(|error| error.get() != "null") {
        return Err(NoAnswer::Error);
    }
    let empty = match endpoint {
        Endpoint::Embeddings => whole
            .data
            .is_none_or(|data| matches!(data.get(), "null" | "[]")),
        Endpoint::Chat => {
            let choices = whole.choices.unwrap_or_default();
            if choices
                .iter()
                .any(|choice| choice.finish_reason.as_deref() == Some(FINISHED_BY_ERROR))
            {
                return Err(NoAnswer::Error);
            }
            choices.is_empty()
        }
    };
    if empty { Err(NoAnswer::Empty) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(wanted: u32, events: &[&'static str]) -> (Progress, VecDeque<Piece>, Option<Broken>) {
        let (mut progress, mut ready) = (Progress::new(wanted, true), VecDeque::new());
        let broken = events.iter().find_map(|event| {
            take(
                &Bytes::from_static(event.as_bytes()),
                &mut ready,
                &mut progress,
            )
            .err()
        });
        (progress, ready, broken)
    }

    const WORD: &str = r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":"hi"}}]}"#;
    const END: &str = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;

    #[test]
    fn an_answer_is_whole_once_every_choice_is_finished() {
        let second = r#"{"choices":[{"index":1,"delta":{"content":"ho"}}]}"#;
        let second_end = r#"{"choices":[{"index":1,"delta":{},"finish_reason":"length"}]}"#;
        assert!(!read(1, &[WORD]).0.is_whole());
        assert!(read(1, &[WORD, END]).0.is_whole());
        assert!(!read(2, &[WORD, END]).0.is_whole());
        assert!(!read(1, &[WORD, END, second]).0.is_whole());
        assert!(read(2, &[WORD, END, second, second_end]).0.is_whole());
    }

    #[test]
    fn done_before_the_finish_hides_nothing() {
        let (progress, _, broken) = read(1, &[WORD, "[DONE]"]);
        assert!(matches!(broken, Some(Broken::TooEarly)) && !progress.done);
        let (progress, _, broken) = read(1, &[WORD, END, "[DONE]"]);
        assert!(broken.is_none() && progress.done);
    }

    #[test]
    fn an_error_in_the_stream_is_no_piece_of_it() {
        for error in [
            r#"{"error":{"message":"overloaded","code":529}}"#,
            r#"{"choices":[{"index":0,"delta":{"content":""},"finish_reason":"error"}]}"#,
        ] {
            let (_, ready, broken) = read(1, &[WORD, error]);
            assert!(matches!(broken, Some(Broken::Error(_))));
            assert_eq!(ready.len(), 1);
        }
        assert!(matches!(
            read(1, &[WORD, r#"{"choices":[{"#]).2,
            Some(Broken::Unreadable(_))
        ));
    }

    #[test]
    fn only_what_is_said_counts_as_a_token() {
        let role = r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#;
        let usage = r#"{"choices":[],"usage":{"total_tokens":3}}"#;
        let call = r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0}]}}]}"#;
        let (progress, ready, _) = read(1, &[role, WORD, usage, call]);
        let content: Vec<bool> = ready.iter().map(|piece| piece.content).collect();
        assert_eq!(content, [false, true, false, true]);
        assert!(progress.mixed);
        let split = "{\"choices\":\n[]}";
        assert_eq!(&read(1, &[split]).1[0].data[..], b"{\"choices\": []}");
    }

    #[test]
    fn a_body_that_is_no_answer_is_found_out_whatever_its_status() {
        let check = |endpoint, body: &str| super::check(endpoint, body.as_bytes());
        let chat = Endpoint::Chat;
        assert!(
            check(
                chat,
                r#"{"choices":[{"finish_reason":"stop"}],"error":null}"#
            )
            .is_ok()
        );
        assert!(matches!(
            check(chat, r#"{"choices":[]}"#),
            Err(NoAnswer::Empty)
        ));
        assert!(matches!(
            check(chat, r#"{"error":{"code":503}}"#),
            Err(NoAnswer::Error)
        ));
        assert!(matches!(
            check(chat, r#"{"choices":[{"finish_reason":"error"}]}"#),
            Err(NoAnswer::Error)
        ));
        assert!(matches!(
            check(chat, r#"{"choices":[{"fin"#),
            Err(NoAnswer::Unreadable(_))
        ));
        assert!(check(Endpoint::Embeddings, r#"{"data":[{}]}"#).is_ok());
        assert!(matches!(
            check(Endpoint::Embeddings, r#"{"data":[]}"#),
            Err(NoAnswer::Empty)
        ));
    }
}
