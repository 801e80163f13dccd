//! Why a server gave no answer: facts only. What they mean is the detector's business.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::HeaderMap;

/// What happened to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Nobody listens, or there is no way to the host.
    Refused,
    /// The host's name could not be resolved.
    Dns,
    /// TLS could not be agreed.
    Tls,
    /// It broke after the request may have been sent.
    Reset,
    /// It ended after the request may have been sent, before the answer was whole.
    Eof,
    /// The server's process ended.
    ProcessExit,
    /// The request was not sent, for sure.
    NotSent,
    /// What came back is no answer.
    Garbage,
}

/// Why a server gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum UpstreamError {
    /// The connection failed.
    #[error("{service}: {message}")]
    Transport {
        /// The service.
        service: Arc<str>,
        /// What happened to the connection.
        fault: Fault,
        /// The same for a person.
        message: String,
        /// How long the server asked to be left alone before it went.
        retry_after: Option<Duration>,
        /// The cause.
        #[source]
        source: Option<Arc<dyn Error + Send + Sync>>,
    },
    /// The server answered with an HTTP status that is not a success.
    #[error("{service}: HTTP {status}")]
    Http {
        /// The service.
        service: Arc<str>,
        /// The status.
        status: u16,
        /// The response's header fields.
        headers: Box<HeaderMap>,
        /// The start of its body, at most 64 KiB.
        body: Bytes,
    },
    /// The server could not be greeted: the request itself was not sent.
    #[error("{service}: it was not asked, because greeting it failed")]
    NotGreeted {
        /// The service.
        service: Arc<str>,
        /// What came of the greeting.
        #[source]
        cause: Box<UpstreamError>,
    },
    /// The server refused the credentials, and others have been read since.
    #[error("{service}: HTTP {status}: it refused the credentials, which have been read again")]
    CredentialsRenewed {
        /// The service.
        service: Arc<str>,
        /// The status it refused them with.
        status: u16,
    },
    /// The server lets in nobody who has not signed in, which only a person can do.
    #[error("{service}: HTTP {status}: somebody must sign in at {address}")]
    SignIn {
        /// The service.
        service: Arc<str>,
        /// The status it refused us with.
        status: u16,
        /// Where to open a browser.
        address: String,
    },
    /// The server no longer knows the session. A new one has been asked for.
    #[error("{service}: the session expired")]
    SessionExpired {
        /// The service.
        service: Arc<str>,
    },
}

impl UpstreamError {
    pub(crate) fn fault(service: &Arc<str>, fault: Fault, message: impl Into<String>) -> Self {
        Self::Transport {
            service: service.clone(),
            fault,
            message: message.into(),
            retry_after: None,
            source: None,
        }
    }

    /// The same, of a server that said when to come back.
    pub(crate) fn come_back_after(mut self, wait: Option<Duration>) -> Self {
        if let Self::Transport { retry_after, .. } = &mut self {
            *retry_after = wait;
        }
        self
    }

    /// The same, where it ended the greeting that goes before a request.
    pub(super) fn before_asking(self, service: &Arc<str>) -> Self {
        match self {
            Self::Transport {
                fault: Fault::Refused | Fault::Dns | Fault::Tls | Fault::NotSent,
                ..
            }
            | Self::NotGreeted { .. } => self,
            cause => Self::NotGreeted {
                service: service.clone(),
                cause: Box::new(cause),
            },
        }
    }

    pub(crate) fn caused(
        service: &Arc<str>,
        fault: Fault,
        message: impl Into<String>,
        source: impl Error + Send + Sync + 'static,
    ) -> Self {
        Self::Transport {
            service: service.clone(),
            fault,
            message: message.into(),
            retry_after: None,
            source: Some(Arc::new(source)),
        }
    }
}
