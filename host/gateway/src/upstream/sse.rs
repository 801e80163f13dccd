//! Server-sent events, as far as streamable HTTP and model APIs use them: the `data` of each event, the
//! place a stream can be taken up again at, and how long the server wants to be left alone before.

use std::time::Duration;

use backstop::detect::hints::MAX_HINT;
use bytes::{Bytes, BytesMut};

use super::MAX_MESSAGE_BYTES;

/// Cuts a byte stream into the data of its events (WHATWG HTML, section 9.2).
#[derive(Debug, Default)]
pub(crate) struct Events {
    buffer: BytesMut,
    /// How much of the buffer is known to hold no line end.
    scanned: usize,
    data: Option<Vec<u8>>,
    retry: Option<Duration>,
    /// The id of the event that is being read.
    id: Option<Bytes>,
    /// The id of the last whole event.
    last_id: Option<Bytes>,
}

/// An event or a line is larger than a message may be.
#[derive(Debug, thiserror::Error)]
#[error("an event is larger than {MAX_MESSAGE_BYTES} bytes")]
pub(crate) struct TooLarge;

impl Events {
    /// Takes in more of the stream.
    pub(crate) fn feed(&mut self, chunk: &[u8]) -> Result<(), TooLarge> {
        if self.buffer.len() + chunk.len() + self.data.as_ref().map_or(0, Vec::len)
            > MAX_MESSAGE_BYTES
        {
            return Err(TooLarge);
        }
        self.buffer.extend_from_slice(chunk);
        Ok(())
    }

    /// The reconnection time the server has set last.
    pub(super) fn retry(&self) -> Option<Duration> {
        self.retry
    }

    /// The id of the last whole event, to go on behind it.
    pub(super) fn last_id(&self) -> Option<Bytes> {
        self.last_id.clone().filter(|id| !id.is_empty())
    }

    /// The same stream in another response: what was cut off is lost, what was set stays.
    pub(super) fn reopened(self) -> Self {
        Self {
            id: self.last_id.clone(),
            last_id: self.last_id,
            retry: self.retry,
            ..Self::default()
        }
    }

    /// The data of the next whole event; events without data are passed over.
    pub(crate) fn next(&mut self) -> Option<Bytes> {
        loop {
            let Some(at) = self.buffer[self.scanned..]
                .iter()
                .position(|byte| matches!(byte, b'\n' | b'\r'))
            else {
                self.scanned = self.buffer.len();
                return None;
            };
            let end = self.scanned + at;
            let line_end = match (self.buffer[end], self.buffer.get(end + 1)) {
                (b'\r', Some(b'\n')) => end + 2,
                // Whether a line feed follows is not known yet.
                (b'\r', None) => {
                    self.scanned = end;
                    return None;
                }
                _ => end + 1,
            };
            let line = self.buffer.split_to(line_end);
            self.scanned = 0;
            let line = &line[..end];
            if line.is_empty() {
                self.last_id.clone_from(&self.id);
                match self.data.take() {
                    Some(data) if !data.is_empty() => return Some(data.into()),
                    _ => continue,
                }
            }
            if let Some(value) = field(line, b"id") {
                // One with a NUL is none (WHATWG HTML, section 9.2.6).
                if !value.contains(&0) {
                    self.id = Some(Bytes::copy_from_slice(value));
                }
            } else if let Some(value) = field(line, b"retry") {
                self.retry = millis(value).or(self.retry);
            } else if let Some(value) = field(line, b"data") {
                match &mut self.data {
                    Some(data) => {
                        data.push(b'\n');
                        data.extend_from_slice(value);
                    }
                    None => self.data = Some(value.to_vec()),
                }
            }
        }
    }
}

/// The value of a field, if the line is one of this name.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    match line.strip_prefix(name)? {
        value @ [] => Some(value),
        [b':', b' ', value @ ..] | [b':', value @ ..] => Some(value),
        // A field whose name only begins like this.
        _ => None,
    }
}

/// Digits only (WHATWG HTML, section 9.2.6); anything else is ignored.
fn millis(value: &[u8]) -> Option<Duration> {
    let digits = std::str::from_utf8(value).ok()?;
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let millis = plain.then(|| digits.parse().unwrap_or(u64::MAX))?;
    Some(Duration::from_millis(millis).min(MAX_HINT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reconnection_time_is_the_last_one_that_is_a_number() {
        let mut events = Events::default();
        let mut after = |text: &[u8]| {
            events.feed(text).unwrap();
            assert_eq!(events.next(), None);
            events.retry()
        };
        assert_eq!(after(b"retry: soon\nretrying: 5\nretry\nretry: -1\n"), None);
        assert_eq!(after(b"retry: 1500\n\n"), Some(Duration::from_millis(1500)));
        assert_eq!(
            after(b"retry: 2s\nretry:\n"),
            Some(Duration::from_millis(1500))
        );
        assert_eq!(after(b"retry:99999999999999999999999\n"), Some(MAX_HINT));
    }

    #[test]
    fn a_stream_goes_on_behind_its_last_whole_event() {
        let mut events = Events::default();
        let mut after = |text: &[u8]| {
            events.feed(text).unwrap();
            while events.next().is_some() {}
            events.last_id()
        };
        assert_eq!(after(b"data: 1\n\n"), None);
        // An event without data counts, one that is not whole does not.
        assert_eq!(after(b"id: a\ndata:\n\nid: b\ndata: 1\n"), Some("a".into()));
        assert_eq!(after(b"\n"), Some("b".into()));
        assert_eq!(after(b"data: 2\n\nid: c\0\ndata: 3\n\n"), Some("b".into()));
        assert_eq!(after(b"retry: 7\nid: d\ndata: cut o"), Some("b".into()));

        let mut events = events.reopened();
        assert_eq!(events.retry(), Some(Duration::from_millis(7)));
        events.feed(b"data: 4\n\n").unwrap();
        assert_eq!(events.next().unwrap(), "4");
        assert_eq!(events.last_id(), Some("b".into()));
        events.feed(b"id:\n\n").unwrap();
        assert_eq!(events.next(), None);
        assert_eq!(events.last_id(), None, "it has been taken back");
    }

    #[test]
    fn events_come_out_whole_however_the_stream_is_cut() {
        let stream = b"\xEF\xBB\xBFid: 1\ndata:\n\n: keep-alive\r\n\r\nevent: message\r\ndata: {\"a\":\r\ndata: 1}\r\n\r\ndatabase: x\ndata:2\n\n";
        for size in 1..stream.len() {
            let mut events = Events::default();
            let mut seen = Vec::new();
            for chunk in stream.chunks(size) {
                events.feed(chunk).unwrap();
                while let Some(event) = events.next() {
                    seen.push(event);
                }
            }
            assert_eq!(seen, [&b"{\"a\":\n1}"[..], b"2"], "chunks of {size}");
        }
    }
}
