//! A gateway made from a configuration, and a client that checks what it gets.

use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use backstop::config::Config;
use backstop::registry::TargetSpec;
use backstop::strategy::component::{Runtime, RuntimeOptions};
use backstop::{Engine, assemble_with};
use backstop_gateway::model::ModelSpec;
use backstop_gateway::upstream::ServiceSpec;
use backstop_gateway::{Gateway, HttpOptions};
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::provider::Provider;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("wasm-cache");
    std::fs::create_dir_all(&cache).unwrap();
    Runtime::new(RuntimeOptions::default().with_cache(cache)).unwrap()
});

/// A gateway under test.
pub struct Front {
    pub gateway: Gateway,
    pub engine: Engine,
    pub url: String,
    pub client: Client,
}

/// One `[[model]]` of the group `chat`.
pub fn model(name: &str, provider: &Provider, priority: i32, more: &str) -> String {
    let url = &provider.url;
    format!(
        "[[model]]\nname = {name:?}\ngroup = \"chat\"\nbase_url = {url:?}\nmodel = \"m-{name}\"\npriority = {priority}\n{more}\n"
    )
}

impl Front {
    pub async fn start(config: &str) -> Self {
        Self::start_with(config, &|_| None, HttpOptions::default()).await
    }

    pub async fn start_with(
        config: &str,
        env: &dyn Fn(&str) -> Option<String>,
        options: HttpOptions,
    ) -> Self {
        Self::start_beside(config, Vec::new(), env, options).await
    }

    /// One that has servers as well.
    pub async fn start_beside(
        config: &str,
        services: Vec<ServiceSpec>,
        env: &dyn Fn(&str) -> Option<String>,
        options: HttpOptions,
    ) -> Self {
        let file = std::env::temp_dir().join("backstop.toml");
        let loaded = Config::parse(config, &file, env);
        assert!(!loaded.has_errors(), "{:#?}", loaded.diagnostics);
        let config = loaded.config;
        let builder = Engine::builder().random(backstop::random::seeded(1));
        let assembled = assemble_with(builder, &config, &file, &RUNTIME)
            .await
            .unwrap();
        assert!(
            assembled.diagnostics.is_empty(),
            "{:#?}",
            assembled.diagnostics
        );
        let models = config.models.iter();
        let models = models.map(|model| ModelSpec::from_config(model, env).unwrap());
        let engine = assembled.engine;
        for service in &services {
            let target = TargetSpec::service(service.name.clone(), service.group.clone());
            engine.registry().register(target).unwrap();
        }
        let gateway = Gateway::new(engine.clone(), assembled.operations, services)
            .unwrap()
            .with_models(models.collect(), config.completion.clone())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let serving = gateway.clone();
        tokio::spawn(async move { serving.serve_http(listener, options).await });
        let client = Client::builder().no_proxy().build().unwrap();
        Self {
            gateway,
            engine,
            url,
            client,
        }
    }

    pub fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.client
            .post(format!("{}/{path}", self.url))
            .header("content-type", "application/json")
            .body(body.to_string())
    }

    /// A question to a model.
    pub fn ask(&self, model: &str, stream: bool) -> RequestBuilder {
        self.post("chat/completions", &question(model, stream))
    }

    pub async fn answer(&self, request: RequestBuilder) -> Answer {
        Answer::of(request.send().await.unwrap()).await
    }

    pub async fn whole(&self) -> Answer {
        self.answer(self.ask("chat", false)).await
    }

    pub async fn streamed(&self) -> Heard {
        Heard::of(self.ask("chat", true).send().await.unwrap()).await
    }
}

pub fn question(model: &str, stream: bool) -> Value {
    json!({ "model": model, "stream": stream, "messages": [{ "role": "user", "content": "Count." }] })
}

/// An answer that is no stream.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
    pub body: Value,
}

impl Answer {
    pub async fn of(response: Response) -> Self {
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let text = response.text().await.unwrap();
        let body = serde_json::from_str(&text).unwrap_or_default();
        Self {
            status,
            headers,
            text,
            body,
        }
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    pub fn said(&self) -> &str {
        self.body["choices"][0]["message"]["content"]
            .as_str()
            .unwrap_or_default()
    }

    pub fn error(&self) -> &Value {
        &self.body["error"]
    }
}

/// Everything a client hears of a stream.
#[derive(Debug, Default)]
pub struct Heard {
    pub status: u16,
    pub served_by: String,
    pub failed: String,
    pub text: String,
    pub models: Vec<String>,
    pub finish: Option<String>,
    pub done: bool,
    pub error: Option<Value>,
}

impl Heard {
    pub async fn of(mut response: Response) -> Self {
        let header = |name: &str| {
            let value = response.headers().get(name);
            value
                .map(|value| value.to_str().unwrap().to_owned())
                .unwrap_or_default()
        };
        let mut heard = Self {
            status: response.status().as_u16(),
            served_by: header("x-backstop-served-by"),
            failed: header("x-backstop-failed"),
            ..Self::default()
        };
        let mut bytes = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .expect("the front never breaks a stream")
        {
            bytes.extend_from_slice(&chunk);
        }
        let text = String::from_utf8(bytes).unwrap();
        if heard.status != 200 {
            let body: Value = serde_json::from_str(&text).unwrap();
            heard.error = Some(body["error"].clone());
            return heard;
        }
        for event in text.split("\n\n").filter(|event| !event.is_empty()) {
            assert!(
                heard.error.is_none() && !heard.done,
                "something follows the end: {event}"
            );
            let data = event.strip_prefix("data: ").expect("an event with data");
            if data == "[DONE]" {
                heard.done = true;
                continue;
            }
            let value: Value = serde_json::from_str(data).unwrap();
            if value["error"] != Value::Null {
                heard.error = Some(value["error"].clone());
                continue;
            }
            let model = value["model"].as_str().unwrap_or_default().to_owned();
            if heard.models.last() != Some(&model) {
                heard.models.push(model);
            }
            let choice = &value["choices"][0];
            heard.text += choice["delta"]["content"].as_str().unwrap_or_default();
            if let Some(finish) = choice["finish_reason"].as_str() {
                heard.finish = Some(finish.to_owned());
            }
        }
        heard
    }

    /// Whole, or an error that says so; never in between.
    pub fn is_whole(&self) -> bool {
        match (&self.error, self.done) {
            (None, true) => {
                assert_eq!(self.finish.as_deref(), Some("stop"), "{self:?}");
                assert_eq!(self.text, crate::provider::whole_text(), "{self:?}");
                true
            }
            (Some(_), false) => {
                assert_eq!(self.finish, None, "{self:?}");
                false
            }
            _ => panic!("neither whole nor an error: {self:?}"),
        }
    }
}

/// Waits until something is so.
pub async fn until(what: impl Fn() -> bool) {
    let wait = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait)
        .await
        .expect("it never came to be");
}
