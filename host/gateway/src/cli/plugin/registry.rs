//! What `push` and `pull` share: the layout a component has in an OCI registry, the client, and who we
//! are to the registry.
//!
//! A component is an artifact in the layout other tools for WebAssembly use (CNCF TAG Runtime, "Wasm OCI
//! Artifact Layout"): an image manifest whose configuration says what the component imports and
//! exports, and whose one layer is the component's file as it is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use backstop::strategy::component::Digest;
use clap::Args;
use docker_credential::{CredentialRetrievalError as Lacking, DockerCredential};
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, RegistryOperation};

/// The media type of the configuration.
pub(super) const CONFIG: &str = "application/vnd.wasm.config.v0+json";
/// The media type of the component.
pub(super) const LAYER: &str = "application/wasm";

const USER: &str = "BACKSTOP_REGISTRY_USER";
const PASSWORD: &str = "BACKSTOP_REGISTRY_PASSWORD";

/// A component in a registry.
#[derive(Debug, Args)]
pub(crate) struct Artifact {
    /// Where it is: REGISTRY/REPOSITORY:TAG, such as `ghcr.io/team/next-best:1.2.0`, or
    /// REGISTRY/REPOSITORY@sha256:… for exactly that content.
    #[arg(value_name = "REFERENCE")]
    reference: Reference,
    /// Speak HTTP without TLS: for a registry on this machine.
    #[arg(long)]
    plain_http: bool,
}

/// A registry that we may use.
pub(super) struct Registry {
    pub(super) client: Client,
    pub(super) reference: Reference,
    pub(super) auth: RegistryAuth,
}

impl Artifact {
    pub(super) fn reference(&self) -> &Reference {
        &self.reference
    }

    /// Reaches the registry, and shows it who we are if it wants to know.
    pub(super) async fn reach(&self, operation: RegistryOperation) -> anyhow::Result<Registry> {
        let registry = self.reference.resolve_registry();
        let name = registry.to_owned();
        // A helper is a program, which may take its time.
        let auth = tokio::task::spawn_blocking(move || credentials(&name)).await??;
        let protocol = if self.plain_http {
            ClientProtocol::Http
        } else {
            ClientProtocol::Https
        };
        let client = Client::new(ClientConfig {
            protocol,
            connect_timeout: Some(Duration::from_secs(10)),
            read_timeout: Some(Duration::from_secs(60)),
            user_agent: concat!("backstop/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        });
        let reached = client.auth(&self.reference, &auth, operation).await;
        reached.map_err(|error| explain(error, &self.reference))?;
        Ok(Registry {
            client,
            reference: self.reference.clone(),
            auth,
        })
    }
}

impl Registry {
    /// The same artifact, by its content alone.
    pub(super) fn pinned(&self, manifest: &str) -> String {
        format!(
            "{}/{}@{manifest}",
            self.reference.registry(),
            self.reference.repository()
        )
    }
}

/// A digest as registries write it.
pub(super) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", Digest::of(bytes))
}

/// What an error means to whoever typed the command.
pub(super) fn explain(error: OciDistributionError, reference: &Reference) -> anyhow::Error {
    use OciDistributionError as Oci;
    let registry = reference.registry();
    let is_missing = match &error {
        Oci::RegistryError { envelope, .. } => envelope.errors.iter().any(|error| {
            matches!(
                error.code,
                OciErrorCode::ManifestUnknown | OciErrorCode::NameUnknown | OciErrorCode::NotFound
            )
        }),
        Oci::ServerError { code, .. } => *code == 404,
        Oci::ImageManifestNotFoundError(_) => true,
        _ => false,
    };
    let is_refused = match &error {
        Oci::UnauthorizedError { .. } | Oci::AuthenticationFailure(_) => true,
        Oci::ServerError { code, .. } => matches!(code, 401 | 403),
        _ => false,
    };
    let what = if is_missing {
        format!("there is no {reference}: check its name and tag")
    } else if is_refused {
        format!(
            "{registry} does not let us: log in with `docker login {registry}`, or set {USER} and {PASSWORD}"
        )
    } else if matches!(error, Oci::RequestError(_)) {
        format!(
            "cannot reach {registry}: check its name and the network; a registry without TLS needs --plain-http"
        )
    } else if matches!(error, Oci::DigestError(_)) {
        format!(
            "{registry} sent something else than {reference}: do not use it, and tell whoever runs the registry"
        )
    } else {
        format!("{registry} does not serve {reference}")
    };
    anyhow::Error::new(error).context(what)
}

/// Who we are to a registry: what the environment says, else what Docker and its relatives have logged
/// in with, else nobody.
fn credentials(registry: &str) -> anyhow::Result<RegistryAuth> {
    let given = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    if let (Some(user), Some(password)) = (given(USER), given(PASSWORD)) {
        return Ok(RegistryAuth::Basic(user, password));
    }
    let Some(path) = docker_config() else {
        return Ok(RegistryAuth::Anonymous);
    };
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(RegistryAuth::Anonymous);
        }
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", path.display()));
        }
    };
    stored(&text, registry).with_context(|| {
        format!(
            "{} cannot be used: log in again with `docker login {registry}`, or set {USER} and {PASSWORD}",
            path.display()
        )
    })
}

fn docker_config() -> Option<PathBuf> {
    let folder = |name| std::env::var_os(name).filter(|folder| !folder.is_empty());
    let folder = match folder("DOCKER_CONFIG") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(&folder("HOME")?).join(".docker"),
    };
    Some(folder.join("config.json"))
}

/// The credentials of a registry by Docker's configuration, asked of a helper where it names one.
fn stored(text: &[u8], registry: &str) -> anyhow::Result<RegistryAuth> {
    // As Docker itself writes its own registry.
    let registry = match registry {
        "index.docker.io" | "docker.io" => "https://index.docker.io/v1/",
        other => other,
    };
    match docker_credential::get_credential_from_reader(text, registry) {
        Ok(DockerCredential::UsernamePassword(user, password)) => {
            Ok(RegistryAuth::Basic(user, password))
        }
        Ok(DockerCredential::IdentityToken(token)) => Ok(RegistryAuth::Bearer(token)),
        Err(Lacking::NoCredentialConfigured) => Ok(RegistryAuth::Anonymous),
        // What helpers say of a registry they do not know.
        Err(Lacking::HelperFailure { stdout, .. }) if stdout.contains("credentials not found") => {
            Ok(RegistryAuth::Anonymous)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_found_as_docker_writes_them_and_a_damaged_file_is_not_taken_for_none() {
        let text = br#"{"auths": {"ghcr.io": {"auth": "bWU6c2VjOnJldA=="}, "https://index.docker.io/v1/": {"auth": "YTpi"}, "bad.io": {"auth": "%"}}}"#;
        let basic = |user: &str, password: &str| RegistryAuth::Basic(user.into(), password.into());
        assert_eq!(stored(text, "ghcr.io").unwrap(), basic("me", "sec:ret"));
        assert_eq!(stored(text, "index.docker.io").unwrap(), basic("a", "b"));
        assert_eq!(stored(text, "other.io").unwrap(), RegistryAuth::Anonymous);
        let error = stored(text, "bad.io").unwrap_err().to_string();
        assert_eq!(error, "Unable to decode credential");
        assert!(stored(b"{ secret", "ghcr.io").is_err());
    }

    #[test]
    fn a_helper_that_cannot_be_asked_is_an_error() {
        let text = br#"{"credHelpers": {"team.io": "backstop-has-no-such-helper"}}"#;
        let error = stored(text, "team.io").unwrap_err().to_string();
        assert!(error.contains("credential helper"), "{error}");
        assert_eq!(stored(text, "other.io").unwrap(), RegistryAuth::Anonymous);
    }
}
