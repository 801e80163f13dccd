//! What is known of a model: where it is, what it can do, and the key it is asked with.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use backstop::config::{self, ModelApi};
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue};

use crate::headers::header_map;

/// One model the gateway may ask.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// Its name: the name of the engine's target.
    pub name: Arc<str>,
    /// The group it belongs to.
    pub group: Arc<str>,
    /// Where its API is, such as `https://api.example.com/v1`. A query is kept.
    pub base_url: Url,
    /// Which API it is.
    pub api: ModelApi,
    /// The model as the API knows it.
    pub model: String,
    /// The key it is asked with.
    pub key: ApiKey,
    /// Header fields for every request.
    pub headers: HeaderMap,
    /// Its place in the group, higher is asked first.
    pub priority: i32,
    /// How many tokens of request and answer it takes, where that is known.
    pub context_length: Option<u64>,
    /// Whether it can be given tools.
    pub tools: bool,
    /// Whether it can be given images.
    pub vision: bool,
    /// Whether it goes on with an answer that another began.
    pub prefill: bool,
}

/// The key a model is asked with. Nothing shows it.
#[derive(Clone, PartialEq)]
pub enum ApiKey {
    /// None is sent.
    None,
    /// This text.
    Text(Arc<str>),
    /// The text of a file, read anew for each request.
    File(PathBuf),
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Text(_) => f.write_str("Text(...)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

impl ModelSpec {
    /// The model an entry of the configuration describes. `env` is where the key is looked up.
    ///
    /// # Errors
    /// One sentence that names the key of the entry and never holds a secret.
    pub fn from_config(
        model: &config::Model,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, String> {
        let base_url: Url = model
            .base_url
            .value()
            .parse()
            .map_err(|error| format!("base_url cannot be used: {error}"))?;
        let text = |name: &String| env(name).map(|text| text.trim().to_owned());
        let key = match (&model.api_key_file, &model.api_key_env) {
            (Some(path), _) => ApiKey::File(path.clone()),
            (None, Some(name)) => match text(name).filter(|text| !text.is_empty()) {
                Some(text) if HeaderValue::from_str(&text).is_err() => {
                    return Err(format!(
                        "the key in {name} has characters HTTP does not allow; set it anew"
                    ));
                }
                Some(text) => ApiKey::Text(text.into()),
                None => ApiKey::None,
            },
            (None, None) => ApiKey::None,
        };
        let headers = header_map(&model.headers)?;
        Ok(Self {
            name: model.name.as_str().into(),
            group: model.group.as_str().into(),
            base_url,
            api: model.api,
            model: model.model.clone(),
            key,
            headers,
            priority: model.priority,
            context_length: model.context_length,
            tools: model.tools,
            vision: model.vision,
            prefill: model.prefill,
        })
    }
}
