//! Who may use the administration endpoint.
//!
//! On a loopback address everybody on the machine may look and, unless a token is asked for, steer.
//! Anywhere else there is no endpoint without a token. A web page must not be able to make a browser do
//! either: requests addressed to a name that is not this machine's are refused (DNS rebinding), and so
//! are those of a foreign origin (cross-site requests). No cookie counts for anything, and what changes
//! something must be sent as JSON, which no page can send to another site without asking it first.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use sha2::{Digest as _, Sha256};

use super::refusal;
use crate::front::http::{host_name, is_loopback};

/// Whom the endpoint answers.
pub(super) struct Access {
    /// The digest of the token, where one is asked for.
    token: Option<[u8; 32]>,
}

/// The endpoint would be open to the network.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0} can be reached from other machines, so the administration endpoint needs a token: set `[admin] token_env` to the variable that holds one, or listen on 127.0.0.1"
)]
pub struct OpenToNetwork(SocketAddr);

impl Access {
    pub(super) fn new(listen: SocketAddr, token: Option<&str>) -> Result<Self, OpenToNetwork> {
        if token.is_none() && !listen.ip().is_loopback() {
            return Err(OpenToNetwork(listen));
        }
        Ok(Self {
            token: token.map(|token| Sha256::digest(token).into()),
        })
    }

    /// Whether a token is asked for, so that not everybody on the machine comes in.
    pub(super) fn asks_for_a_token(&self) -> bool {
        self.token.is_some()
    }

    fn check(&self, headers: &HeaderMap) -> Result<(), (StatusCode, &'static str)> {
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        let host = text(header::HOST).unwrap_or_default();
        // Who holds the token has not been sent by a browser that was lured here.
        if self.token.is_none() && !is_loopback(host_name(host)) {
            return Err((StatusCode::FORBIDDEN, "this host name is not allowed"));
        }
        let is_own = |origin: &str| {
            let authority = origin.split_once("://").map(|(_, rest)| rest);
            authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host))
        };
        let is_foreign = text(header::ORIGIN).is_some_and(|origin| !is_own(origin))
            || text(SEC_FETCH_SITE).is_some_and(|site| !matches!(site, "same-origin" | "none"));
        if is_foreign {
            return Err((StatusCode::FORBIDDEN, "this origin is not allowed"));
        }
        if self.token.is_some_and(|token| !bears(headers, token)) {
            return Err((StatusCode::UNAUTHORIZED, "a bearer token is needed"));
        }
        Ok(())
    }
}

/// What a browser says of where a request comes from (Fetch Metadata).
const SEC_FETCH_SITE: header::HeaderName = header::HeaderName::from_static("sec-fetch-site");

/// Compared by digest, so that the time it takes says nothing of the token.
fn bears(headers: &HeaderMap, token: [u8; 32]) -> bool {
    headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .is_some_and(|(_, given)| <[u8; 32]>::from(Sha256::digest(given.trim())) == token)
}

/// Lets through who may come in.
pub(super) async fn guard(
    State(access): State<Arc<Access>>,
    request: Request,
    next: Next,
) -> Response {
    match access.check(request.headers()) {
        Ok(()) => next.run(request).await,
        Err((status, reason)) => {
            let mut response = refusal(status, reason);
            if status == StatusCode::UNAUTHORIZED {
                let challenge = HeaderValue::from_static("Bearer");
                response
                    .headers_mut()
                    .insert(header::WWW_AUTHENTICATE, challenge);
            }
            response
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            let name = header::HeaderName::from_static(name);
            (name, value.parse().unwrap())
        });
        pairs.collect()
    }

    fn local(token: Option<&str>) -> Access {
        Access::new("127.0.0.1:8809".parse().unwrap(), token).unwrap()
    }

    #[test]
    fn an_address_others_can_reach_needs_a_token() {
        let everywhere = "0.0.0.0:8809".parse().unwrap();
        let error = Access::new(everywhere, None).err().unwrap().to_string();
        assert!(error.contains("token_env"), "{error}");
        assert!(Access::new(everywhere, Some("secret")).is_ok());
    }

    #[test]
    fn a_name_that_is_not_this_machines_is_refused() {
        for host in ["localhost:8809", "127.0.0.1:8809", "[::1]:8809"] {
            assert!(
                local(None).check(&headers(&[("host", host)])).is_ok(),
                "{host}"
            );
        }
        for host in ["evil.example:8809", "", "192.168.0.7"] {
            let refused = local(None).check(&headers(&[("host", host)]));
            assert_eq!(refused.unwrap_err().0, StatusCode::FORBIDDEN, "{host}");
        }
    }

    #[test]
    fn a_page_from_elsewhere_is_refused() {
        let own = [
            ("host", "localhost:8809"),
            ("origin", "http://localhost:8809"),
        ];
        assert!(local(None).check(&headers(&own)).is_ok());
        for origin in ["https://evil.example", "null", "http://localhost:1"] {
            let foreign = headers(&[("host", "localhost:8809"), ("origin", origin)]);
            let refused = local(None).check(&foreign);
            assert_eq!(refused.unwrap_err().0, StatusCode::FORBIDDEN, "{origin}");
        }
        // Where the browser names no origin, as for a picture, it names the relation.
        for (site, let_in) in [("same-origin", true), ("none", true), ("cross-site", false)] {
            let fetched = headers(&[("host", "localhost:8809"), ("sec-fetch-site", site)]);
            assert_eq!(local(None).check(&fetched).is_ok(), let_in, "{site}");
        }
    }

    #[test]
    fn a_token_is_asked_for_where_there_is_one() {
        let access = local(Some("secret"));
        let with = |value| headers(&[("host", "backstop.example"), ("authorization", value)]);
        assert!(access.check(&with("Bearer secret")).is_ok());
        assert!(access.check(&with("bearer  secret ")).is_ok());
        for wrong in ["Bearer secre", "Basic secret", "secret", "Bearer "] {
            let refused = access.check(&with(wrong));
            assert_eq!(refused.unwrap_err().0, StatusCode::UNAUTHORIZED, "{wrong}");
        }
        let nothing = access.check(&headers(&[("host", "localhost")]));
        assert_eq!(nothing.unwrap_err().0, StatusCode::UNAUTHORIZED);
    }
}
