//! What a component asks for, read from its bytes before anything is compiled, and what a strategy
//! says of itself, checked before it is believed.

use serde_json::Value;
use wasmparser::{Encoding, Parser, Payload};

use super::MAX_REASON;
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

/// What a component may be made of. A compiler works on what it is given until it is done, so what
/// would take it minutes is not given to it. The largest in use (an interpreter for Python, 18 MB)
/// have a quarter of these at most.
const MAX_DEPTH: u32 = 32;
/// Definitions outside core modules: types, instances, aliases, functions, imports, exports.
const MAX_ITEMS: u32 = 20_000;
/// Functions of all core modules together.
const MAX_FUNCTIONS: u32 = 100_000;
/// Bytes of one function: the time to compile one grows faster than its length.
const MAX_FUNCTION_BYTES: usize = 1 << 20;
/// Characters of a name in a message.
const MAX_SHOWN: usize = 200;

/// A text of the component's own on one line, and not too much of it: it goes into logs and onto
/// terminals.
pub(super) fn printable(text: &str, most: usize) -> String {
    let mut shown = String::new();
    for c in text.chars().take(most) {
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// What a component is made of, counted.
#[derive(Default)]
struct Parts {
    depth: u32,
    items: u32,
    functions: u32,
    longest: usize,
}

impl Parts {
    fn count(&mut self, payload: &Payload<'_>) {
        let items = match payload {
            // A nested module or component ends like the outermost one does.
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => {
                self.depth += 1;
                1
            }
            Payload::End(_) => {
                self.depth = self.depth.saturating_sub(1);
                0
            }
            Payload::CodeSectionStart { count, .. } => {
                self.functions = self.functions.saturating_add(*count);
                0
            }
            Payload::CodeSectionEntry(body) => {
                self.longest = self.longest.max(body.range().len());
                0
            }
            Payload::InstanceSection(section) => section.count(),
            Payload::CoreTypeSection(section) => section.count(),
            Payload::ComponentInstanceSection(section) => section.count(),
            Payload::ComponentAliasSection(section) => section.count(),
            Payload::ComponentTypeSection(section) => section.count(),
            Payload::ComponentCanonicalSection(section) => section.count(),
            Payload::ComponentImportSection(section) => section.count(),
            Payload::ComponentExportSection(section) => section.count(),
            _ => 0,
        };
        self.items = self.items.saturating_add(items);
    }

    fn check(&self, plugin: &str) -> Result<(), LoadError> {
        let check = |what, count: usize, limit: usize| {
            if count <= limit {
                return Ok(());
            }
            Err(LoadError::Excessive {
                plugin: plugin.to_owned(),
                what,
                count,
                limit,
            })
        };
        check(
            "components within components",
            self.depth as usize,
            MAX_DEPTH as usize,
        )?;
        check("definitions", self.items as usize, MAX_ITEMS as usize)?;
        check("functions", self.functions as usize, MAX_FUNCTIONS as usize)?;
        check("bytes in one function", self.longest, MAX_FUNCTION_BYTES)
    }
}

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
        let name = || plugin.to_owned();
        if !bytes.starts_with(b"\0asm") {
            return Err(LoadError::NotWasm { plugin: name() });
        }
        let damaged = |error: wasmparser::BinaryReaderError| LoadError::Damaged {
            plugin: name(),
            reason: format!(
                "{} at byte {}",
                printable(error.message(), MAX_REASON),
                error.offset()
            ),
        };
        let (mut imports, mut exports, mut parts) = (Vec::new(), Vec::new(), Parts::default());
        for payload in Parser::new(0).parse_all(bytes) {
            let payload = payload.map_err(damaged)?;
            parts.count(&payload);
            parts.check(plugin)?;
            match payload {
                Payload::Version {
                    encoding: Encoding::Module,
                    ..
                } if parts.depth == 0 => {
                    return Err(LoadError::CoreModule { plugin: name() });
                }
                Payload::ComponentImportSection(section) if parts.depth == 0 => {
                    for import in section {
                        let import = import.map_err(damaged)?.name.name;
                        imports.push(printable(import, MAX_SHOWN));
                    }
                }
                Payload::ComponentExportSection(section) if parts.depth == 0 => {
                    for export in section {
                        let export = export.map_err(damaged)?.name.name;
                        exports.push(printable(export, MAX_SHOWN));
                    }
                }
                _ => {}
            }
        }
        let (version, contract) = contract(plugin, exports)?;
        for import in &imports {
            check_import(plugin, import)?;
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
        if text.chars().any(char::is_control) {
            let reason = "it has a control character, which logs and terminals would obey";
            return Err(field(name, reason.into()));
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
    fn what_a_component_says_of_itself_stays_on_one_short_line() {
        assert_eq!(printable("a\u{1b}[2J\nb", 200), "a\\u{1b}[2J\\nb");
        assert_eq!(printable("äöü", 2), "äö");
        // A component that exports a name with a line break and an escape in it.
        let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
        bytes.extend([4, 8]);
        bytes.extend(b"\0asm\x0d\0\x01\0");
        bytes.extend([11, 12, 1, 0, 6]);
        bytes.extend(b"a\x1b\n[2J");
        bytes.extend([4, 0, 0]);
        let said = Manifest::read("p", &bytes).unwrap_err().to_string();
        assert!(said.contains("a\\u{1b}\\n[2J"), "{said}");
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
