//! A registry on loopback, as the OCI distribution specification describes it, that can be told to lie.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, Response, StatusCode, header};
use base64::Engine as _;
use bytes::Bytes;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;

/// What the registry holds and has been asked.
#[derive(Default)]
pub struct Held {
    /// By repository and digest.
    pub blobs: HashMap<(String, String), Bytes>,
    /// By repository, and tag or digest: media type and content.
    pub manifests: HashMap<(String, String), (String, Bytes)>,
    uploads: HashMap<String, Vec<u8>>,
    /// Whom it lets in; everybody where there is nobody.
    pub user: Option<(&'static str, &'static str)>,
    /// Method and path of each request.
    pub asked: Vec<String>,
}

#[derive(Clone, Default)]
pub struct Registry {
    held: Arc<Mutex<Held>>,
    address: Option<SocketAddr>,
}

pub fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    let hexadecimal: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hexadecimal}")
}

fn answer(
    status: StatusCode,
    headers: &[(header::HeaderName, String)],
    body: Body,
) -> Response<Body> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(name, value);
    }
    response.body(body).unwrap()
}

fn error(status: StatusCode, code: &str) -> Response<Body> {
    let body = format!(r#"{{"errors": [{{"code": "{code}", "message": "{code}"}}]}}"#);
    answer(status, &[], body.into())
}

impl Registry {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registry = Self {
            address: Some(listener.local_addr().unwrap()),
            ..Self::default()
        };
        let router = axum::Router::new()
            .fallback(
                |State(registry): State<Self>, request: Request| async move {
                    registry.serve(request).await
                },
            )
            .with_state(registry.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        registry
    }

    /// The name a reference begins with.
    pub fn host(&self) -> String {
        self.address.unwrap().to_string()
    }

    pub fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap()
    }

    async fn serve(&self, request: Request) -> Response<Body> {
        let (head, body) = request.into_parts();
        let body = to_bytes(body, 64 << 20).await.unwrap();
        let (path, query) = (
            head.uri.path().to_owned(),
            head.uri.query().unwrap_or_default(),
        );
        let mut held = self.held();
        held.asked.push(format!("{} {path}", head.method));
        let authorization = head.headers.get(header::AUTHORIZATION);
        let authorization = authorization.map(|value| value.to_str().unwrap().to_owned());
        if let Some((user, password)) = held.user {
            let pair =
                base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
            if path == "/token" {
                return if authorization == Some(format!("Basic {pair}")) {
                    answer(StatusCode::OK, &[], r#"{"token": "let-in"}"#.into())
                } else {
                    error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED")
                };
            }
            if authorization.as_deref() != Some("Bearer let-in") {
                let realm = format!(
                    "Bearer realm=\"http://{}/token\",service=\"test\"",
                    self.host()
                );
                return answer(
                    StatusCode::UNAUTHORIZED,
                    &[(header::WWW_AUTHENTICATE, realm)],
                    Body::empty(),
                );
            }
        }
        if path == "/v2/" {
            return answer(StatusCode::OK, &[], Body::empty());
        }
        let path = path.trim_start_matches("/v2/");
        if let Some((repository, reference)) = path.split_once("/manifests/") {
            held.manifest(&head.method, repository, reference, &head.headers, body)
        } else if let Some((repository, upload)) = path.split_once("/blobs/uploads/") {
            held.upload(&head.method, repository, upload, query, &body)
        } else if let Some((repository, digest)) = path.split_once("/blobs/") {
            match held.blobs.get(&(repository.to_owned(), digest.to_owned())) {
                Some(blob) => answer(StatusCode::OK, &[], blob.clone().into()),
                None => error(StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
            }
        } else {
            error(StatusCode::NOT_FOUND, "NOT_FOUND")
        }
    }
}

impl Held {
    fn manifest(
        &mut self,
        method: &Method,
        repository: &str,
        reference: &str,
        headers: &header::HeaderMap,
        body: Bytes,
    ) -> Response<Body> {
        let place = |reference: &str| (repository.to_owned(), reference.to_owned());
        if method != Method::PUT {
            return match self.manifests.get(&place(reference)) {
                Some((media_type, content)) => answer(
                    StatusCode::OK,
                    &[(header::CONTENT_TYPE, media_type.clone())],
                    content.clone().into(),
                ),
                None => error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
            };
        }
        let manifest: Value = serde_json::from_slice(&body).unwrap();
        let layers = manifest["layers"].as_array().unwrap();
        for part in layers.iter().chain([&manifest["config"]]) {
            let digest = part["digest"].as_str().unwrap();
            let blob = self.blobs.get(&place(digest));
            if blob.is_none_or(|blob| Some(blob.len() as u64) != part["size"].as_u64()) {
                return error(StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN");
            }
        }
        let digest = sha256(&body);
        let media_type = headers[header::CONTENT_TYPE].to_str().unwrap().to_owned();
        for name in [reference, &digest] {
            self.manifests
                .insert(place(name), (media_type.clone(), body.clone()));
        }
        let location = format!("/v2/{repository}/manifests/{digest}");
        answer(
            StatusCode::CREATED,
            &[(header::LOCATION, location)],
            Body::empty(),
        )
    }

    fn upload(
        &mut self,
        method: &Method,
        repository: &str,
        upload: &str,
        query: &str,
        body: &[u8],
    ) -> Response<Body> {
        let location = |upload: &str| {
            let location = format!("/v2/{repository}/blobs/uploads/{upload}");
            [(header::LOCATION, location)]
        };
        match *method {
            Method::POST => {
                let upload = format!("u{}", self.uploads.len());
                self.uploads.insert(upload.clone(), Vec::new());
                answer(StatusCode::ACCEPTED, &location(&upload), Body::empty())
            }
            Method::PATCH => {
                self.uploads
                    .get_mut(upload)
                    .unwrap()
                    .extend_from_slice(body);
                answer(StatusCode::ACCEPTED, &location(upload), Body::empty())
            }
            _ => {
                let mut content = std::mem::take(self.uploads.get_mut(upload).unwrap());
                content.extend_from_slice(body);
                let digest = query.trim_start_matches("digest=").replace("%3A", ":");
                if sha256(&content) != digest {
                    return error(StatusCode::BAD_REQUEST, "DIGEST_INVALID");
                }
                let place = (repository.to_owned(), digest);
                self.blobs.insert(place, content.into());
                answer(StatusCode::CREATED, &location("done"), Body::empty())
            }
        }
    }
}
