//! The published JSON schema of the configuration: it takes every configuration of this repository, and
//! refuses what `check` refuses for its form.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};

use backstop::config::Config;
use jsonschema::Validator;
use serde_json::{Value, json};

fn validator() -> Validator {
    let schema = serde_json::to_value(Config::json_schema()).unwrap();
    jsonschema::validator_for(&schema).unwrap()
}

/// TOML as JSON; a date is its text, as strategies get it.
fn as_json(value: toml::Value) -> Value {
    match value {
        toml::Value::Datetime(date) => date.to_string().into(),
        toml::Value::Array(list) => list.into_iter().map(as_json).collect(),
        toml::Value::Table(table) => {
            let members = table.into_iter().map(|(key, value)| (key, as_json(value)));
            Value::Object(members.collect())
        }
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(it) => it.into(),
    }
}

fn parsed(text: &str) -> Value {
    as_json(toml::Value::Table(text.parse().unwrap()))
}

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap().to_owned()
}

/// The blocks of TOML in a text, each one that has a table of a configuration.
fn blocks(text: &str) -> Vec<String> {
    let blocks = text.split("```toml\n").skip(1);
    let blocks = blocks.filter_map(|rest| rest.split_once("\n```"));
    let is_configuration = |block: &str| {
        ["[[service]]", "[[model]]", "[[discovery]]", "[[strategy]]"]
            .iter()
            .any(|table| block.contains(table))
    };
    let blocks = blocks.map(|(block, _)| block.to_owned());
    blocks.filter(|block| is_configuration(block)).collect()
}

#[test]
fn every_configuration_of_the_repository_is_taken() {
    let validator = validator();
    let mut texts = Vec::new();
    for folder in ["host/gateway/src/cli/templates"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            texts.push((
                path.display().to_string(),
                std::fs::read_to_string(path).unwrap(),
            ));
        }
    }
    let everything = "host/engine/src/config/tests/everything.toml";
    let text = std::fs::read_to_string(root().join(everything)).unwrap();
    texts.push((everything.to_owned(), text));
    for file in ["README.md", "sdk/src/languages.md"] {
        let text = std::fs::read_to_string(root().join(file)).unwrap();
        texts.extend(
            blocks(&text)
                .into_iter()
                .map(|block| (file.to_owned(), block)),
        );
    }
    assert!(texts.len() >= 9, "{}", texts.len());
    for (name, text) in texts {
        let document = parsed(&text);
        let errors: Vec<String> = validator
            .iter_errors(&document)
            .map(|error| format!("{error} at {}", error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{name}: {errors:#?}\n{text}");
    }
}

#[test]
fn what_check_refuses_for_its_form_is_refused() {
    let validator = validator();
    let service = "[[service]]\nname = 'a'\nurl = 'http://a/mcp'\n";
    assert!(validator.is_valid(&parsed(service)));
    for wrong in [
        "stok = true\n",
        "stock = 'yes'\n",
        "[[service]]\nurl = 'http://a/mcp'\n",
        "[[service]]\nname = 'a'\n",
        "[[service]]\nname = 'a'\nurl = 'http://a/mcp'\ncommand = 'b'\n",
        "[[service]]\nname = 'a'\nurl = 'http://a/mcp'\nprioriti = 1\n",
        "[[service]]\nname = 'a'\nurl = 'http://a/mcp'\nweight = 0\n",
        "[[service]]\nname = 'a'\nurl = 'http://a/mcp'\ntrusted = 'yes'\n",
        "[[service]]\nname = 'a'\nurl = 'http://a/mcp'\nrate_limit = 'many'\n",
        "[[service]]\nname = 'a'\nurl = 'http://a/mcp'\nhealth = { intervall = '1s' }\n",
        "[service]\nname = 'a'\nurl = 'http://a/mcp'\n",
        "[[model]]\nname = 'a'\n",
        "[[model]]\nname = 'a'\nbase_url = 'http://a/v1'\napi = 'closed'\n",
        "[[strategy]]\nname = 'a'\n",
        "[[strategy]]\nplugin = 'a'\non_fault = 'panic'\n",
        "[[strategy]]\nplugin = 'a'\nlimits = { memori = '1MiB' }\n",
        "[retry.TimeoutError]\nmax_retries = 101\n",
        "[retry.TimeoutError]\nmax_retries = 'two'\n",
        "[retry.TimeoutError]\nfactor = 0.5\n",
        "[retry.TimeoutError]\njitter = 'eqal'\n",
        "[retry.TimeoutError]\ndelay = '1s'\n",
        "[health]\ninterval = '-5s'\n",
        "[health]\ninterval = 'soon'\n",
        "[health]\nrise = 'many'\n",
        "[circuit]\nfailure_rate = 1.5\n",
        "[budget]\nratio = -1\n",
        "[deadline]\ncall = true\n",
        "[[operation]]\nrepeat = 'read-only'\n",
        "[[operation]]\nmatch = '*'\nimportance = 101\n",
        "[[operation]]\nmatch = '*'\nhedge = 'p'\n",
        "[[pattern]]\nname = 'a'\nmessage = 'b'\n",
        "[cache]\nmax_bytes = 'much'\n",
        "[gateway]\nallowed_hosts = 'a'\n",
        "[[discovery]]\nname = 'a'\n",
        "[events]\nkeep = 1001\n",
    ] {
        let loaded = Config::parse(wrong, Path::new("backstop.toml"), &|_| None);
        assert!(loaded.has_errors(), "`check` takes it: {wrong}");
        assert!(
            !validator.is_valid(&parsed(wrong)),
            "the schema takes it: {wrong}"
        );
    }
}

#[test]
fn it_says_what_it_is_and_what_each_key_means() {
    let schema = serde_json::to_value(Config::json_schema()).unwrap();
    assert_eq!(schema["title"], json!("backstop configuration"));
    let service = &schema["$defs"]["Service"]["properties"]["priority"];
    assert!(
        service["description"]
            .as_str()
            .unwrap()
            .contains("higher is asked first")
    );
    for (key, property) in schema["properties"].as_object().unwrap() {
        let told = property["description"].is_string() || property["$ref"].is_string();
        assert!(told, "{key} is not described");
    }
}
