//! What a component asks for, read from its bytes before anything is compiled, and what a strategy
//! says of itself, checked before it is believed.

use serde_json::Value;
use wasmparser::{Encoding, Parser, Payload};

use super::bindings::backstop::strategy::types;
use super::bindings::{PACKAGE, POLICY};
use super::contract::Contract;
use super::error::LoadError;
use crate::kind::Kind;
use crate::strategy::StrategyInfo;

/// Kinds, operations and other entries one metadata may list.
const MAX_ENTRIES: usize = 256;
/// Bytes of one of them.
const MAX_ENTRY_BYTES: usize = 256;

/// The names a component imports and exports, and the contract it was built for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) imports: Vec<String>,
    /// The version it names.
    pub(super) version: String,
    /// The version that is served to it.
    pub(super) contract: Contract,
}

impl Manifest {
    /// Reads and checks the names.
    pub(super) fn read(plugin: &str, bytes: &[u8]) -> Result<Self, LoadError> {
        let plugin = || plugin.to_owned();
        if !bytes.starts_with(b"\0asm") {
            return Err(LoadError::NotWasm { plugin: plugin() });
        }
        let damaged = |error: wasmparser::BinaryReaderError| LoadError::Damaged {
            plugin: plugin(),
            reason: format!("{} at byte {}", error.message(), error.offset()),
        };
        let (mut imports, mut exports, mut depth) = (Vec::new(), Vec::new(), 0_u32);
        for payload in Parser::new(0).parse_all(bytes) {
            match payload.map_err(damaged)? {
                Payload::Version {
                    encoding: Encoding::Module,
                    ..
                } if depth == 0 => {
                    return Err(LoadError::CoreModule { plugin: plugin() });
                }
                // A nested module or component ends like the outermost one does.
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                Payload::ComponentImportSection(section) if depth == 0 => {
                    for import in section {
                        imports.push(import.map_err(damaged)?.name.name.to_owned());
                    }
                }
                Payload::ComponentExportSection(section) if depth == 0 => {
                    for export in section {
                        exports.push(export.map_err(damaged)?.name.name.to_owned());
                    }
                }
                _ => {}
            }
        }
        let (version, contract) = contract(&plugin(), exports)?;
        for import in &imports {
            check_import(&plugin(), import)?;
        }
        Ok(Self {
            imports,
            version,
            contract,
        })
    }
}

fn contract(plugin: &str, exports: Vec<String>) -> Result<(String, Contract), LoadError> {
    let policy = exports
        .iter()
        .find_map(|export| export.strip_prefix(POLICY)?.strip_prefix('@'));
    let Some(version) = policy.map(str::to_owned) else {
        return Err(LoadError::WrongWorld {
            plugin: plugin.into(),
            wanted: Contract::offers(POLICY),
            exports,
        });
    };
    match Contract::serving(&version) {
        Some(contract) => Ok((version, contract)),
        None => Err(LoadError::Contract {
            plugin: plugin.into(),
            wants: format!("{POLICY}@{version}"),
            offers: Contract::offers(POLICY),
        }),
    }
}

fn check_import(plugin: &str, import: &str) -> Result<(), LoadError> {
    let forbidden = |what| {
        Err(LoadError::Forbidden {
            plugin: plugin.into(),
            import: import.into(),
            what,
        })
    };
    if import.starts_with("wasi:sockets/") {
        return forbidden("network");
    }
    if import.starts_with("wasi:http/") {
        return forbidden("network, and no HTTP");
    }
    let (name, version) = import.split_once('@').unwrap_or((import, ""));
    let package = name.split('/').next().unwrap_or(name);
    if package == PACKAGE {
        return if Contract::serving(version).is_some() {
            Ok(())
        } else {
            Err(LoadError::Contract {
                plugin: plugin.into(),
                wants: import.into(),
                offers: Contract::offers(name),
            })
        };
    }
    let known = [
        "wasi:cli",
        "wasi:clocks",
        "wasi:filesystem",
        "wasi:io",
        "wasi:random",
    ]
    .contains(&package)
        && version.starts_with("0.2.");
    if known {
        Ok(())
    } else {
        Err(LoadError::UnknownImport {
            plugin: plugin.into(),
            import: import.into(),
        })
    }
}

/// Turns what a strategy says of itself into what the engine works with.
pub(super) fn info(plugin: &str, metadata: types::Metadata) -> Result<StrategyInfo, LoadError> {
    let field = |field, reason: String| LoadError::Field {
        plugin: plugin.into(),
        field,
        reason,
    };
    for (name, list) in [
        ("kinds", &metadata.kinds),
        ("operations", &metadata.operations),
        ("capabilities", &metadata.capabilities),
    ] {
        if list.len() > MAX_ENTRIES {
            return Err(field(
                name,
                format!("{} entries, at most {MAX_ENTRIES} are allowed", list.len()),
            ));
        }
        if let Some(entry) = list
            .iter()
            .find(|entry| entry.is_empty() || entry.len() > MAX_ENTRY_BYTES)
        {
            return Err(field(
                name,
                format!(
                    "an entry of {} bytes, use 1 to {MAX_ENTRY_BYTES}",
                    entry.len()
                ),
            ));
        }
    }
    for (name, text) in [("version", &metadata.version), ("level", &metadata.level)] {
        if text.is_empty() || text.len() > MAX_ENTRY_BYTES {
            return Err(field(
                name,
                format!("{} bytes, use 1 to {MAX_ENTRY_BYTES}", text.len()),
            ));
        }
    }
    let info = StrategyInfo {
        name: metadata.name,
        version: metadata.version,
        description: metadata.description,
        level: metadata.level,
        default_priority: metadata.default_priority,
        kinds: metadata.kinds.iter().map(|kind| Kind::new(kind)).collect(),
        operations: metadata.operations,
        capabilities: metadata.capabilities,
        config_schema: metadata.config_schema,
        extra: metadata.extra,
    };
    Ok(info)
}

/// Checks a configuration against a strategy's own schema.
pub(super) fn check_config(plugin: &str, schema: &str, config: &Value) -> Result<(), LoadError> {
    if !config.is_object() {
        return Err(LoadError::Config {
            plugin: plugin.into(),
            field: "config".into(),
            reason: "it is not an object".into(),
            remedy: "write it as a table, or leave it out".into(),
        });
    }
    if schema.is_empty() {
        return Ok(());
    }
    let refuse = |reason: String| LoadError::Field {
        plugin: plugin.into(),
        field: "config-schema",
        reason,
    };
    let schema: Value =
        serde_json::from_str(schema).map_err(|error| refuse(format!("not JSON: {error}")))?;
    let validator = jsonschema::draft202012::new(&schema)
        .map_err(|error| refuse(format!("not a JSON Schema: {error}")))?;
    validator
        .validate(config)
        .map_err(|error| explain(plugin, &schema, &error))
}

/// One sentence about the field at fault, and one about what would be right.
fn explain(plugin: &str, schema: &Value, error: &jsonschema::ValidationError<'_>) -> LoadError {
    use jsonschema::error::ValidationErrorKind as At;

    let parent = error.instance_path().as_str().replace('/', ".");
    let mut field = format!("config{parent}");
    let owner = error
        .schema_path()
        .as_str()
        .rsplit_once('/')
        .map_or("", |(owner, _)| owner);
    let owner = schema.pointer(owner).unwrap_or(schema);
    let remedy = match error.kind() {
        At::Required { property } => {
            let name = property.as_str().unwrap_or_default();
            field = format!("{field}.{name}");
            format!(
                "write it{}",
                described(owner.pointer(&format!("/properties/{name}")))
            )
        }
        At::AdditionalProperties { unexpected } | At::UnevaluatedProperties { unexpected } => {
            field = format!("{field}.{}", unexpected.first().map_or("", String::as_str));
            let known: Vec<&str> = owner
                .get("properties")
                .and_then(Value::as_object)
                .map(|properties| properties.keys().map(String::as_str).collect())
                .unwrap_or_default();
            if known.is_empty() {
                "remove it".into()
            } else {
                format!("remove it, or use one of: {}", known.join(", "))
            }
        }
        _ => format!("correct it{}", described(Some(owner))),
    };
    LoadError::Config {
        plugin: plugin.into(),
        field,
        reason: error.to_string(),
        remedy,
    }
}

fn described(schema: Option<&Value>) -> String {
    schema
        .and_then(|schema| schema.get("description")?.as_str())
        .map(|text| format!(" ({})", text.trim_end_matches('.')))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema() -> String {
        json!({
            "type": "object", "additionalProperties": false, "required": ["path"],
            "properties": {
                "path": { "type": "string", "description": "The file to answer from." },
                "retries": { "type": "integer", "maximum": 10, "description": "How often to try." },
            },
        })
        .to_string()
    }

    #[test]
    fn a_wrong_configuration_is_refused_with_field_reason_and_remedy() {
        let refusal = |config: Value| {
            check_config("p", &schema(), &config)
                .unwrap_err()
                .to_string()
        };
        assert!(check_config("p", &schema(), &json!({ "path": "a", "retries": 3 })).is_ok());
        assert_eq!(
            refusal(json!({ "path": "a", "retries": 11 })),
            "plugin p: `config.retries` is wrong: 11 is greater than the maximum of 10: correct it (How often to try)"
        );
        assert_eq!(
            refusal(json!({})),
            "plugin p: `config.path` is wrong: \"path\" is a required property: write it (The file to answer from)"
        );
        let extra = refusal(json!({ "path": "a", "retry": 1 }));
        assert!(
            extra.contains("`config.retry` is wrong")
                && extra.contains("use one of: path, retries"),
            "{extra}"
        );
        assert!(refusal(json!([])).contains("it is not an object"));
    }

    #[test]
    fn a_schema_that_is_none_or_fetches_another_is_refused() {
        for schema in [
            "{",
            "{\"type\": 7}",
            "{\"$ref\": \"http://127.0.0.1:1/schema\"}",
        ] {
            let error = check_config("p", schema, &json!({}))
                .unwrap_err()
                .to_string();
            assert!(error.contains("`config-schema`"), "{error}");
        }
        assert!(check_config("p", "", &json!({ "any": 1 })).is_ok());
    }

    #[test]
    fn networks_are_refused_by_name_and_unknown_imports_too() {
        let refusal = |import: &str| check_import("p", import).unwrap_err().to_string();
        assert!(refusal("wasi:sockets/tcp@0.2.6").contains("gets no network"));
        assert!(refusal("wasi:http/outgoing-handler@0.2.6").contains("gets no network"));
        assert!(refusal("vendor:thing/api@1.0.0").contains("`vendor:thing/api@1.0.0`"));
        let newer = refusal("backstop:strategy/log@0.2.0");
        assert!(
            newer.contains("`backstop:strategy/log@0.2.0`")
                && newer.contains("`backstop:strategy/log@0.1.0`")
        );
        for good in [
            "wasi:cli/exit@0.2.9",
            "backstop:strategy/log@0.1.0",
            "backstop:strategy/log@0.1.7",
        ] {
            assert!(check_import("p", good).is_ok(), "{good}");
        }
    }
}
