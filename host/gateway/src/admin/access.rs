//! Who may use the administration endpoint.
//!
//! On a loopback address everybody on the machine may look, and, unless a token is asked for, steer.
//! Anywhere else there is no endpoint without a token. A web page must not be able to make a browser
//! do either: requests addressed to a name that is not this machine's are refused (DNS rebinding), and
//! so are requests of a foreign origin (cross-site requests).

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest as _, Sha256};

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Whom the endpoint answers.
pub(super) struct Access {
    /// The digest of the token, where one is asked for.
    token: Option<[u8; 32]>,
    /// The names a request may be addressed to, beside those of this machine.
    listens_on: IpAddr,
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
            listens_on: listen.ip(),
        })
    }

    fn check(&self, headers: &HeaderMap) -> Result<(), (StatusCode, &'static str)> {
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        // Who holds the token has not been sent by a browser that was lured here.
        if self.token.is_none() {
            let host = text(header::HOST).unwrap_or_default();
            if !self.is_ours(host) {
                return Err((StatusCode::FORBIDDEN, "this host name is not allowed"));
            }
        }
        if let Some(origin) = text(header::ORIGIN) {
            let host = text(header::HOST).unwrap_or_default();
            let same = origin
                .split_once("://")
                .is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(host));
            if !same {
                return Err((StatusCode::FORBIDDEN, "this origin is not allowed"));
            }
        }
        if self.token.is_some_and(|token| !bears(headers, token)) {
            return Err((StatusCode::UNAUTHORIZED, "a bearer token is needed"));
        }
        Ok(())
    }

    fn is_ours(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[') {
            Some(v6) => v6.split(']').next().unwrap_or_default(),
            None => host.split(':').next().unwrap_or_default(),
        };
        name.eq_ignore_ascii_case("localhost")
            || name
                .parse::<IpAddr>()
                .is_ok_and(|address| address.is_loopback() || address == self.listens_on)
    }
}

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
        Err((StatusCode::UNAUTHORIZED, reason)) => (
            StatusCode::UNAUTHORIZED,
            [(header::WWW_AUTHENTICATE, "Bearer")],
            reason,
        )
            .into_response(),
        Err(refusal) => refusal.into_response(),
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
            assert!(local(None).check(&headers(&[("host", host)])).is_ok(), "{host}");
        }
        for host in ["evil.example:8809", "", "192.168.0.7"] {
            let refused = local(None).check(&headers(&[("host", host)]));
            assert_eq!(refused.unwrap_err().0, StatusCode::FORBIDDEN, "{host}");
        }
    }

    #[test]
    fn a_page_from_elsewhere_is_refused() {
        let own = [("host", "localhost:8809"), ("origin", "http://localhost:8809")];
        assert!(local(None).check(&headers(&own)).is_ok());
        for origin in ["https://evil.example", "null", "http://localhost:1"] {
            let foreign = headers(&[("host", "localhost:8809"), ("origin", origin)]);
            let refused = local(None).check(&foreign);
            assert_eq!(refused.unwrap_err().0, StatusCode::FORBIDDEN, "{origin}");
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
