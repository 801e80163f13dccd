//! Server-sent events, as far as streamable HTTP and model APIs use them: the `data` of each event.

use bytes::{Bytes, BytesMut};

use super::MAX_MESSAGE_BYTES;

/// Cuts a byte stream into the data of its events (WHATWG HTML, section 9.2).
#[derive(Debug, Default)]
pub(crate) struct Events {
    buffer: BytesMut,
    /// How much of the buffer is known to hold no line end.
    scanned: usize,
    data: Option<Vec<u8>>,
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
                match self.data.take() {
                    Some(data) if !data.is_empty() => return Some(data.into()),
                    _ => continue,
                }
            }
            if let Some(value) = line.strip_prefix(b"data") {
                let value = match value {
                    [] => value,
                    [b':', b' ', rest @ ..] | [b':', rest @ ..] => rest,
                    // A field whose name only begins like this.
                    _ => continue,
                };
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

#[cfg(test)]
mod tests {
    use super::*;

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
