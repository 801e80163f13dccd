//! Guests written as WebAssembly text: the contract's exports around bodies a test chooses, so that
//! a guest can do exactly the wrong thing.

use std::fmt::Write;

/// The contract's types, in order, as text. `metadata` and `action` are also functions, so their
/// types go by other names here; components compare types by shape.
const TYPES: &[(&str, &str)] = &[
    (
        "traits",
        r#"(flags "retryable" "ambiguous" "local" "repeatable" "silent")"#,
    ),
    (
        "failure",
        r#"(record (field "kind" string) (field "http-status" (option u16)) (field "rpc-code" (option s32))
            (field "traits" $traits) (field "retry-after" (option u64)) (field "attempts" u32)
            (field "retries" u32) (field "fallbacks" u32) (field "time-left" u64) (field "importance" u8))"#,
    ),
    ("retry", r#"(record (field "delay" (option u64)))"#),
    (
        "switch-target",
        r#"(record (field "target" (option string)) (field "target-kind" (option string)))"#,
    ),
    (
        "call-operation",
        r#"(record (field "operation" string) (field "arguments" (option string)) (field "target" (option string)))"#,
    ),
    (
        "answer-source",
        r#"(enum "last-known-good" "static-default")"#,
    ),
    (
        "answer",
        r#"(record (field "source" $answer-source) (field "body" (option string)))"#,
    ),
    ("fail", r#"(record (field "message" (option string)))"#),
    (
        "custom",
        r#"(record (field "name" string) (field "payload" string))"#,
    ),
    (
        "proposal",
        r#"(variant (case "retry" $retry) (case "switch-target" $switch-target)
            (case "call-operation" $call-operation) (case "answer" $answer) (case "fail" $fail)
            (case "decline") (case "custom" $custom))"#,
    ),
    (
        "decision",
        r#"(record (field "action" $proposal) (field "reason" string))"#,
    ),
    (
        "info",
        r#"(record (field "name" string) (field "version" string) (field "description" string)
            (field "level" string) (field "default-priority" s32) (field "kinds" (list string))
            (field "operations" (list string)) (field "capabilities" (list string))
            (field "config-schema" string) (field "extra" (list (tuple string string))))"#,
    ),
];

const FUNCTIONS: &[(&str, &str)] = &[
    ("metadata", "(result $info)"),
    (
        "configure",
        r#"(param "config" string) (result (result (error string)))"#,
    ),
    ("condition", r#"(param "failure" $failure) (result bool)"#),
    ("action", r#"(param "failure" $failure) (result $decision)"#),
];

/// What a guest's `condition` and `action` are given, flattened.
const FAILURE: &str =
    "(param i32 i32 i32 i32 i32 i32 i32 i32 i64 i32 i32 i32 i64 i32) (result i32)";

const INFO_AT: usize = 1024;
const DECISION_AT: usize = 2048;
/// Where `configure` finds `ok`, and where `error` is.
pub(crate) const OK_AT: usize = 3072;
pub(crate) const REFUSAL_AT: usize = 3088;
const TEXT_AT: usize = 4096;

/// What `action` proposes.
pub(crate) enum Proposes {
    Retry(Option<u64>),
    CallOperation {
        operation: String,
        arguments: String,
    },
    Static(Option<String>),
    Fail(String),
}

pub(crate) struct Guest {
    pub(crate) name: &'static str,
    pub(crate) schema: String,
    pub(crate) capabilities: Vec<&'static str>,
    pub(crate) proposes: Proposes,
    /// Bodies: instructions that leave one i32.
    pub(crate) metadata: String,
    pub(crate) configure: String,
    pub(crate) condition: String,
    pub(crate) action: String,
    /// More items of the core module.
    pub(crate) items: String,
    /// The contract's version it claims.
    pub(crate) version: &'static str,
    /// More imports of the component.
    pub(crate) imports: &'static str,
    /// The interface it exports.
    pub(crate) interface: &'static str,
    /// Pages of memory it starts with.
    pub(crate) pages: u32,
    /// Component items before the memory: functions that need none, lowered.
    pub(crate) early: &'static str,
    /// What the module of the memory imports, and what that is instantiated with.
    pub(crate) early_imports: &'static str,
    pub(crate) early_with: &'static str,
    /// Instructions at the beginning of `realloc`.
    pub(crate) realloc: &'static str,
    /// Component items after the memory: functions, lowered.
    pub(crate) lowered: &'static str,
    /// What the core module imports from `env`, and what `env` has more.
    pub(crate) core_imports: &'static str,
    pub(crate) env: &'static str,
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            name: "guest",
            schema: String::new(),
            capabilities: Vec::new(),
            proposes: Proposes::Retry(Some(7)),
            metadata: format!("i32.const {INFO_AT}"),
            configure: format!("i32.const {OK_AT}"),
            condition: "i32.const 1".into(),
            action: format!("i32.const {DECISION_AT}"),
            items: String::new(),
            version: "0.1.0",
            imports: "",
            interface: "backstop:strategy/policy",
            pages: 2,
            early: "",
            early_imports: "",
            early_with: "",
            realloc: "",
            lowered: "",
            core_imports: "",
            env: "",
        }
    }
}

/// Memory in the making: text is put behind what refers to it.
struct Image {
    bytes: Vec<u8>,
    next: usize,
}

impl Image {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn word(&mut self, at: usize, word: usize) {
        self.put(at, &u32::try_from(word).unwrap().to_le_bytes());
    }

    fn text(&mut self, at: usize, text: &str) {
        let to = self.next;
        self.next += text.len();
        self.put(to, text.as_bytes());
        self.word(at, to);
        self.word(at + 4, text.len());
    }

    fn texts(&mut self, at: usize, texts: &[&str]) {
        let list = self.next.next_multiple_of(4);
        self.next = list + 8 * texts.len();
        self.word(at, list);
        self.word(at + 4, texts.len());
        for (n, text) in texts.iter().enumerate() {
            self.text(list + 8 * n, text);
        }
    }

    fn option(&mut self, at: usize, text: Option<&str>) {
        if let Some(text) = text {
            self.put(at, &[1]);
            self.text(at + 4, text);
        }
    }

    fn of(guest: &Guest) -> Vec<u8> {
        let mut image = Self {
            bytes: vec![0; 1 << 16],
            next: TEXT_AT,
        };
        image.text(INFO_AT, guest.name);
        image.text(INFO_AT + 8, "1.2.3");
        image.text(INFO_AT + 16, "A guest.");
        image.text(INFO_AT + 24, "retry");
        image.word(INFO_AT + 32, 5);
        image.texts(INFO_AT + 52, &guest.capabilities);
        image.text(INFO_AT + 60, &guest.schema);
        image.put(REFUSAL_AT, &[1]);
        image.text(REFUSAL_AT + 4, "`depth` is odd; write an even number");
        match &guest.proposes {
            Proposes::Retry(delay) => {
                if let Some(delay) = delay {
                    image.put(DECISION_AT + 8, &[1]);
                    image.put(DECISION_AT + 16, &delay.to_le_bytes());
                }
            }
            Proposes::CallOperation {
                operation,
                arguments,
            } => {
                image.put(DECISION_AT, &[2]);
                image.text(DECISION_AT + 8, operation);
                image.option(DECISION_AT + 16, Some(arguments));
            }
            Proposes::Static(body) => {
                image.put(DECISION_AT, &[3]);
                image.put(DECISION_AT + 8, &[1]);
                image.option(DECISION_AT + 12, body.as_deref());
            }
            Proposes::Fail(message) => {
                image.put(DECISION_AT, &[4]);
                image.option(DECISION_AT + 8, Some(message));
            }
        }
        image.text(DECISION_AT + 40, "because");
        image.bytes.truncate(image.next);
        image.bytes
    }
}

impl Guest {
    /// The component.
    pub(crate) fn build(&self) -> Vec<u8> {
        wat::parse_str(self.text()).unwrap_or_else(|error| panic!("{error}"))
    }

    fn text(&self) -> String {
        let mut types = String::new();
        let (mut imported, mut exported, mut with) = (String::new(), String::new(), String::new());
        for (name, shape) in TYPES {
            let outside = shape.replace('$', "$x-");
            writeln!(types, "(type ${name} {shape})").unwrap();
            writeln!(
                imported,
                "(type $d-{name} {shape}) (import \"type-{name}\" (type ${name} (eq $d-{name})))"
            )
            .unwrap();
            writeln!(
                exported,
                "(type $e-{name} {outside}) (export $x-{name} \"{name}\" (type $e-{name}))"
            )
            .unwrap();
            writeln!(with, "(with \"type-{name}\" (type ${name}))").unwrap();
        }
        let mut lifted = String::new();
        for (name, shape) in FUNCTIONS {
            let outside = shape.replace('$', "$x-");
            writeln!(
                lifted,
                "(func ${name} {shape} (canon lift (core func $main \"{name}\") (memory $memory) (realloc $realloc)))"
            )
            .unwrap();
            writeln!(
                imported,
                "(import \"func-{name}\" (func $f-{name} {shape}))"
            )
            .unwrap();
            writeln!(
                exported,
                "(export \"{name}\" (func $f-{name}) (func {outside}))"
            )
            .unwrap();
            writeln!(with, "(with \"func-{name}\" (func ${name}))").unwrap();
        }
        let image = Image::of(self)
            .iter()
            .fold(String::new(), |mut text, byte| {
                write!(text, "\\{byte:02x}").unwrap();
                text
            });
        let Self {
            metadata,
            configure,
            condition,
            action,
            items,
            version,
            imports,
            interface,
            pages,
            early,
            early_imports,
            early_with,
            realloc,
            lowered,
            core_imports,
            env,
            ..
        } = self;
        format!(
            r#"(component
  {imports}
  (type $state-error (variant (case "not-granted") (case "quota-exceeded" u64) (case "not-a-number")))
  (import "backstop:strategy/state@0.1.0" (instance $state
    (alias outer 1 $state-error (type $e))
    (export "error" (type $error (eq $e)))
    (export "increment" (func (param "key" string) (param "by" s64) (param "ttl" (option u64))
      (result (result s64 (error $error)))))
    (export "set" (func (param "key" string) (param "value" (list u8)) (param "ttl" (option u64))
      (result (result (error $error)))))))
  (type $folder-error (variant (case "not-granted") (case "not-found") (case "forbidden")
    (case "too-large" u64) (case "failed" string)))
  (import "backstop:strategy/folder@0.1.0" (instance $folder
    (alias outer 1 $folder-error (type $e))
    (export "error" (type $error (eq $e)))
    (export "read" (func (param "path" string) (result (result (list u8) (error $error)))))))
  (import "backstop:strategy/routes@0.1.0" (instance $routes
    (export "declare" (func (param "source" string) (param "fallback" string)))))
  {early}
  (core module $mem
    {early_imports}
    (memory (export "memory") {pages})
    (global $next (mut i32) (i32.const 65536))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (local i32)
      {realloc}
      (local.set 4 (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
      (global.set $next (i32.add (local.get 4) (local.get 3)))
      (local.get 4)))
  (core instance $mem (instantiate $mem {early_with}))
  (alias core export $mem "memory" (core memory $memory))
  (alias core export $mem "realloc" (core func $realloc))
  (core func $increment (canon lower (func $state "increment") (memory $memory) (realloc $realloc)))
  (core func $set (canon lower (func $state "set") (memory $memory) (realloc $realloc)))
  (core func $read (canon lower (func $folder "read") (memory $memory) (realloc $realloc)))
  (core func $declare (canon lower (func $routes "declare") (memory $memory)))
  {lowered}
  (core module $main
    (import "env" "memory" (memory 1))
    (import "env" "increment" (func $increment (param i32 i32 i64 i32 i64 i32)))
    (import "env" "set" (func $set (param i32 i32 i32 i32 i32 i64 i32)))
    (import "env" "read" (func $read (param i32 i32 i32)))
    (import "env" "declare" (func $declare (param i32 i32 i32 i32)))
    {core_imports}
    (global $count (mut i32) (i32.const 0))
    (data (i32.const 0) "{image}")
    {items}
    (func (export "metadata") (result i32) {metadata})
    (func (export "configure") (param i32 i32) (result i32) {configure})
    (func (export "condition") {FAILURE} {condition})
    (func (export "action") {FAILURE} {action}))
  (core instance $main (instantiate $main (with "env" (instance
    (export "memory" (memory $memory))
    (export "increment" (func $increment)) (export "set" (func $set))
    (export "read" (func $read)) (export "declare" (func $declare)) {env}))))
  {types}
  {lifted}
  (component $shim
    {imported}
    {exported})
  (instance $policy (instantiate $shim {with}))
  (export "{interface}@{version}" (instance $policy)))"#
        )
    }
}
