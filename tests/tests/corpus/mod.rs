//! The hostile corpus: components that do one thing wrong each, written as WebAssembly text.

use std::fmt::Write;
use std::time::Duration;

use backstop::Kind;
use backstop::call::{Call, RepeatSafety};
use backstop_tests::engines::{Started, services, start_in};
use backstop_tests::script::{Reply, Request, Script, bad, good};

#[path = "../../../host/engine/tests/component_guest/mod.rs"]
#[allow(dead_code, reason = "shared with tests that need the rest")]
mod component_guest;

use component_guest::{Guest, Proposes};

/// A component that is hostile, and what must come of it.
pub(crate) struct Hostile {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    /// Words of which one must be said of it.
    pub(crate) says: &'static [&'static str],
}

fn hostile(name: &'static str, says: &'static [&'static str], guest: Guest) -> Hostile {
    Hostile {
        name,
        bytes: guest.build(),
        says,
    }
}

fn guest() -> Guest {
    Guest {
        name: "hostile",
        ..Guest::default()
    }
}

fn condition(body: &str) -> Guest {
    Guest {
        condition: body.into(),
        ..guest()
    }
}

fn action(body: &str) -> Guest {
    Guest {
        action: body.into(),
        ..guest()
    }
}

/// `items` of the core module; the others as they are.
fn items(items: &str, condition: &str) -> Guest {
    Guest {
        items: items.into(),
        condition: condition.into(),
        ..guest()
    }
}

const LOOP: &str = "(loop $l (br $l)) i32.const 1";
const TRAP: &str = "unreachable";

/// An import of the host, called in an endless loop.
fn flood(
    imports: &'static str,
    lowered: &'static str,
    core: &'static str,
    env: &'static str,
    call: &str,
) -> Guest {
    Guest {
        imports,
        lowered,
        core_imports: core,
        env,
        condition: format!("(loop $l {call} (br $l)) i32.const 1"),
        ..guest()
    }
}

const CLOCK: &str = r#"(import "backstop:strategy/clock@0.1.0" (instance $clock (export "monotonic" (func (result u64)))))"#;
const POLL: &str = r#"
  (import "wasi:io/poll@0.2.6" (instance $poll
    (export "pollable" (type $p (sub resource)))
    (export "[method]pollable.block" (func (param "self" (borrow $p))))))
  (alias export $poll "pollable" (type $pollable))
  (import "wasi:clocks/monotonic-clock@0.2.6" (instance $mono
    (alias outer 1 $pollable (type $q))
    (export "pollable" (type $r (eq $q)))
    (export "subscribe-duration" (func (param "when" u64) (result (own $r))))))"#;
const POLL_LOWERED: &str = r#"
  (core func $block (canon lower (func $poll "[method]pollable.block")))
  (core func $subscribe (canon lower (func $mono "subscribe-duration")))"#;
const POLL_CORE: &str = r#"
  (import "env" "block" (func $block (param i32)))
  (import "env" "subscribe" (func $subscribe (param i64) (result i32)))"#;
const POLL_ENV: &str = r#"(export "block" (func $block)) (export "subscribe" (func $subscribe))"#;

/// Components that must not become strategies.
pub(crate) fn refused() -> Vec<Hostile> {
    let mut list = vec![
        hostile("loop-in-metadata", &["did not decide within"], Guest { metadata: LOOP.into(), ..guest() }),
        hostile("loop-in-configure", &["did not decide within"], Guest { configure: LOOP.into(), ..guest() }),
        hostile("loop-in-start", &["did not decide within"], items("(func $go (loop $l (br $l))) (start $go)", "i32.const 1")),
        hostile("trap-in-metadata", &["`metadata` failed"], Guest { metadata: TRAP.into(), ..guest() }),
        hostile("trap-in-configure", &["`configure` failed"], Guest { configure: TRAP.into(), ..guest() }),
        hostile("trap-in-start", &["`metadata` failed"], items("(func $go unreachable) (start $go)", "i32.const 1")),
        hostile("memory-at-once", &["more memory", "could not be instantiated"], Guest { pages: 16384, ..guest() }),
        hostile("table-at-once", &["table", "could not be instantiated"], items("(table 10000000 funcref)", "i32.const 1")),
        hostile("name-not-utf8", &["`metadata` failed"], items("(data (i32.const 4096) \"\\ff\\fe\\fd\\fc\")", "i32.const 1")),
        hostile("list-without-end", &["`metadata` failed"], items("(data (i32.const 1060) \"\\00\\00\\00\\00\\ff\\ff\\ff\\7f\")", "i32.const 1")),
        hostile("list-too-long", &["`metadata` failed", "`kinds`"], Guest { pages: 200, ..items("(data (i32.const 1060) \"\\00\\00\\01\\00\\00\\00\\10\\00\")", "i32.const 1") }),
        hostile("metadata-out-of-bounds", &["`metadata` failed"], Guest { metadata: "i32.const 0x7ffffff0".into(), ..guest() }),
        hostile("metadata-unaligned", &["`metadata` failed"], Guest { metadata: "i32.const 1025".into(), ..guest() }),
        hostile("realloc-traps", &["`configure` failed"], Guest { realloc: "unreachable", ..guest() }),
        hostile("realloc-lies", &["`configure` failed"], Guest { realloc: "(return (i32.const 0x7ffffff0))", ..guest() }),
        hostile("realloc-re-enters", &["`configure` failed"], Guest {
            imports: CLOCK,
            early: r#"(core func $now (canon lower (func $clock "monotonic")))"#,
            early_imports: r#"(import "env" "now" (func $now (result i64)))"#,
            early_with: r#"(with "env" (instance (export "now" (func $now))))"#,
            realloc: "(drop (call $now))",
            ..guest()
        }),
        hostile("route-flood", &["`configure` failed"], Guest {
            configure: "(loop $l (call $declare (i32.const 4096) (i32.const 5) (i32.const 4096) (i32.const 5)) (br $l)) i32.const 3072".into(),
            ..guest()
        }),
        hostile("schema-nested", &["`config-schema`"], Guest { schema: "[".repeat(20_000), ..guest() }),
        hostile("schema-not-json", &["`config-schema`"], Guest { schema: "{".into(), ..guest() }),
        hostile("socket", &["gets no network"], Guest { imports: r#"(import "wasi:sockets/tcp@0.2.6" (instance))"#, ..guest() }),
        hostile("http", &["no HTTP"], Guest { imports: r#"(import "wasi:http/outgoing-handler@0.2.6" (instance))"#, ..guest() }),
        hostile("unknown-import", &["does not offer"], Guest { imports: r#"(import "vendor:key/ring@1.0.0" (instance))"#, ..guest() }),
        hostile("later-contract", &["wants the contract"], Guest { version: "9.0.0", ..guest() }),
        hostile("other-world", &["not a fallback strategy"], Guest { interface: "vendor:other/policy", ..guest() }),
        hostile("threads", &["cannot be compiled", "damaged"], items("(memory 1 1 shared)", "i32.const 1")),
    ];
    let mut add = |name, says, bytes| list.push(Hostile { name, bytes, says });
    let good = guest().build();
    add(
        "cut-off",
        &["damaged"] as &[_],
        good[..good.len() - 7].to_vec(),
    );
    add("cut-in-half", &["damaged"], good[..good.len() / 2].to_vec());
    add(
        "only-a-header",
        &["not a fallback strategy"],
        good[..8].to_vec(),
    );
    add("nested-components", &["at most"], nested(2_000));
    add(
        "many-types",
        &["at most"],
        repeated("(type (list u8))", 200_000),
    );
    add(
        "many-instances",
        &[
            "at most",
            "cannot be compiled",
            "could not be instantiated",
            "damaged",
        ],
        repeated("(core instance (instantiate $m))", 50_000),
    );
    add("many-functions", &["at most"], functions(150_000));
    add("one-huge-function", &["at most"], huge_function());
    add(
        "custom-section-longer-than-the-file",
        &["damaged"],
        [&good[..], &[0, 0xff, 0xff, 0xff, 0x7f, 1, b'x']].concat(),
    );
    list
}

/// A component in a component, and so on. Written as bytes: the text's parser has a limit of its own.
fn nested(depth: usize) -> Vec<u8> {
    const HEADER: &[u8] = b"\0asm\x0d\0\x01\0";
    let mut bytes = HEADER.to_vec();
    for _ in 0..depth {
        let mut length = bytes.len();
        let mut outer = HEADER.to_vec();
        outer.push(4);
        while length > 0x7f {
            outer.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
            length >>= 7;
        }
        outer.push(u8::try_from(length).unwrap());
        outer.extend(bytes);
        bytes = outer;
    }
    bytes
}

fn repeated(item: &str, times: usize) -> Vec<u8> {
    let mut text = String::from("(component (core module $m) ");
    for _ in 0..times {
        text.push_str(item);
    }
    text.push(')');
    wat::parse_str(text).unwrap()
}

fn functions(count: usize) -> Vec<u8> {
    let mut text = String::from("(component (core module ");
    for _ in 0..count {
        text.push_str("(func)");
    }
    text.push_str("))");
    wat::parse_str(text).unwrap()
}

/// What takes a compiler longest: one body of two megabytes, every instruction of which may branch.
fn huge_function() -> Vec<u8> {
    let mut text = String::from("(component (core module (func (param i32) (block $b ");
    for _ in 0..400_000 {
        let _ = write!(text, "(br_if $b (local.get 0))");
    }
    text.push_str("))))");
    wat::parse_str(text).unwrap()
}

/// Components that load, and must not harm the call that asks them. `says` is of the fault.
pub(crate) fn faulting() -> Vec<Hostile> {
    let long = Guest {
        pages: 40,
        ..items(
            "(data (i32.const 2088) \"\\00\\00\\00\\00\\00\\00\\20\\00\")",
            "i32.const 1",
        )
    };
    vec![
        hostile("loop-in-condition", &["did not decide within"], condition(LOOP)),
        hostile("loop-in-action", &["did not decide within"], action(LOOP)),
        hostile("trap-in-condition", &["trapped"], condition(TRAP)),
        hostile("trap-in-action", &["trapped"], action(TRAP)),
        hostile("recursion", &["call stack exhausted"], items("(func $r (call $r))", "(call $r) i32.const 1")),
        hostile("mutual-recursion", &["call stack exhausted"], items(
            "(func $r (param i64) (result i64) (i64.add (i64.const 1) (call $s (local.get 0)))) (func $s (param i64) (result i64) (i64.add (i64.const 2) (call $r (local.get 0))))",
            "(drop (call $r (i64.const 0))) i32.const 1")),
        hostile("divides-by-zero", &["divide by zero"], condition("(i32.div_u (i32.const 1) (i32.const 0))")),
        hostile("not-a-number", &["trapped"], condition("(i32.trunc_f64_s (f64.div (f64.const 0) (f64.const 0)))")),
        hostile("infinite", &["trapped"], condition("(i32.trunc_f32_u (f32.const inf))")),
        hostile("reads-out-of-bounds", &["out of bounds"], condition("(i32.load (i32.const -4))")),
        hostile("calls-nothing", &["trapped"], items("(table $t 1 funcref) (type $f (func))", "(call_indirect $t (type $f) (i32.const 0)) i32.const 1")),
        hostile("calls-another-type", &["trapped"], items("(func $g (param i32)) (table $t funcref (elem $g)) (type $f (func))", "(call_indirect $t (type $f) (i32.const 0)) i32.const 1")),
        Hostile {
            name: "memory-bomb",
            bytes: memory_bomb(),
            says: &["more memory than its limit"],
        },
        hostile("table-bomb", &["trapped"], items("(table $t 1 funcref)", "(if (i32.lt_s (table.grow $t (ref.null func) (i32.const 10000000)) (i32.const 0)) (then unreachable)) i32.const 1")),
        hostile("result-out-of-bounds", &["trapped", "invalid result"], action("i32.const 0x7ffffff8")),
        hostile("result-unaligned", &["trapped", "invalid result"], action("i32.const 2049")),
        hostile("reason-not-utf8", &["invalid result", "trapped"], items("(data (i32.const 60000) \"\\ff\\fe\\fd\\fc\") (data (i32.const 2088) \"\\60\\ea\\00\\00\\04\\00\\00\\00\")", "i32.const 1")),
        hostile("reason-without-end", &["invalid result", "trapped"], items("(data (i32.const 2088) \"\\00\\00\\00\\00\\00\\00\\00\\40\")", "i32.const 1")),
        hostile("reason-too-long", &["invalid result", "trapped"], long),
        hostile("action-unheard-of", &["invalid result", "trapped"], items("(data (i32.const 2048) \"\\ff\")", "i32.const 1")),
        hostile("waits-for-ever", &["invalid result"], Guest { proposes: Proposes::Retry(Some(u64::MAX)), ..guest() }),
        hostile("arguments-not-json", &["invalid result"], Guest {
            proposes: Proposes::CallOperation { operation: "x".into(), arguments: "{".repeat(50_000) },
            ..guest()
        }),
        hostile("body-not-json", &["invalid result"], Guest { proposes: Proposes::Static(Some("NaN".into())), ..guest() }),
        hostile("body-missing", &["invalid result"], Guest { proposes: Proposes::Static(None), ..guest() }),
        hostile("sleeps", &["did not decide within"], Guest {
            imports: POLL,
            lowered: POLL_LOWERED,
            core_imports: POLL_CORE,
            env: POLL_ENV,
            condition: "(call $block (call $subscribe (i64.const 60000000000))) i32.const 1".into(),
            ..guest()
        }),
        hostile("naps-again-and-again", &["did not decide within", "trapped"], flood(POLL, POLL_LOWERED, POLL_CORE, POLL_ENV, "(call $block (call $subscribe (i64.const 1000000)))")),
        hostile("hoards-handles", &["trapped", "invalid result"], flood(POLL, POLL_LOWERED, POLL_CORE, POLL_ENV, "(drop (call $subscribe (i64.const 0)))")),
        hostile("watches-the-clock", &["did not decide within"], flood(
            CLOCK,
            r#"(core func $now (canon lower (func $clock "monotonic")))"#,
            r#"(import "env" "now" (func $now (result i64)))"#,
            r#"(export "now" (func $now))"#,
            "(drop (call $now))")),
        hostile("floods-the-log", &["did not decide within"], flood(
            r#"(type $level (enum "trace" "debug" "info" "warn" "error"))
               (import "backstop:strategy/log@0.1.0" (instance $log
                 (alias outer 1 $level (type $l)) (export "level" (type $e (eq $l)))
                 (export "write" (func (param "level" $e) (param "message" string)))))"#,
            r#"(core func $log (canon lower (func $log "write") (memory $memory)))"#,
            r#"(import "env" "log" (func $log (param i32 i32 i32)))"#,
            r#"(export "log" (func $log))"#,
            "(call $log (i32.const 0) (i32.const 0) (i32.const 60000))")),
        hostile("drains-chance", &["trapped", "invalid result", "did not decide within"], flood(
            r#"(import "wasi:random/random@0.2.6" (instance $chance (export "get-random-bytes" (func (param "len" u64) (result (list u8))))))"#,
            r#"(core func $chance (canon lower (func $chance "get-random-bytes") (memory $memory) (realloc $realloc)))"#,
            r#"(import "env" "chance" (func $chance (param i64 i32)))"#,
            r#"(export "chance" (func $chance))"#,
            "(call $chance (i64.const -1) (i32.const 904))")),
        hostile("ends-the-program", &["ended itself"], Guest {
            imports: r#"(import "wasi:cli/exit@0.2.6" (instance $exit (export "exit" (func (param "status" (result))))))"#,
            lowered: r#"(core func $exit (canon lower (func $exit "exit")))"#,
            core_imports: r#"(import "env" "exit" (func $exit (param i32)))"#,
            env: r#"(export "exit" (func $exit))"#,
            condition: "(call $exit (i32.const 1)) i32.const 1".into(),
            ..guest()
        }),
        // It has no state: each write is refused, and it goes on writing.
        hostile("floods-the-state", &["did not decide within", "was stopped"], Guest {
            condition: "(loop $l (call $set (i32.const 4096) (i32.const 5) (i32.const 0) (i32.const 60000) (i32.const 0) (i64.const 0) (i32.const 904)) (br $l)) i32.const 1".into(),
            ..guest()
        }),
        // It finds a file system without a folder, and gives up.
        hostile("looks-for-files", &["trapped"], Guest {
            imports: r#"
              (import "wasi:filesystem/types@0.2.6" (instance $fs (export "descriptor" (type (sub resource)))))
              (alias export $fs "descriptor" (type $descriptor))
              (import "wasi:filesystem/preopens@0.2.6" (instance $preopens
                (alias outer 1 $descriptor (type $d)) (export "descriptor" (type $e (eq $d)))
                (export "get-directories" (func (result (list (tuple (own $e) string)))))))"#,
            lowered: r#"(core func $dirs (canon lower (func $preopens "get-directories") (memory $memory) (realloc $realloc)))"#,
            core_imports: r#"(import "env" "dirs" (func $dirs (param i32)))"#,
            env: r#"(export "dirs" (func $dirs))"#,
            condition: "(call $dirs (i32.const 904)) (if (i32.eqz (i32.load (i32.const 908))) (then unreachable)) i32.const 1".into(),
            ..guest()
        }),
    ]
}

/// Takes page after page, and writes to each, until it is refused one.
fn memory_bomb() -> Vec<u8> {
    items(
        "",
        "(loop $l (if (i32.lt_s (memory.grow (i32.const 16)) (i32.const 0)) (then unreachable)) (i32.store (i32.mul (i32.sub (memory.size) (i32.const 1)) (i32.const 65536)) (i32.const 1)) (br $l)) i32.const 1",
    )
    .build()
}

/// A component that does nothing wrong.
pub(crate) fn harmless() -> Vec<u8> {
    guest().build()
}

/// The same as another file: a custom section is nobody's business.
pub(crate) fn harmless_variant(n: u8) -> Vec<u8> {
    let mut guest = guest();
    guest.condition = "i32.const 0".into();
    let mut bytes = guest.build();
    bytes.extend([0, 3, 1, b'v', n]);
    bytes
}

/// A strategy whose action is whatever chance puts into its memory, read by the raw ABI: any
/// discriminant, any flag, any pointer and any length, half of them nearly right.
pub(crate) fn says_anything() -> Vec<u8> {
    let word = |at: usize, mask: &str| {
        format!(
            "(i32.store (i32.const {at}) (i32.and (i32.wrap_i64 (call $next)) (select (i32.const {mask}) (i32.const -1) (i32.and (i32.wrap_i64 (call $next)) (i32.const 7)))))"
        )
    };
    let mut action = String::new();
    // Discriminants and flags, then pointers into the texts and lengths, in turns.
    for (at, mask) in (2048..2096)
        .step_by(4)
        .zip(["7", "1", "0x11ff", "0x3f"].into_iter().cycle())
    {
        action.push_str(&word(at, mask));
    }
    action.push_str("i32.const 2048");
    Guest {
        imports: r#"(import "backstop:strategy/random@0.1.0" (instance $chance (export "next" (func (result u64)))))"#,
        lowered: r#"(core func $next (canon lower (func $chance "next")))"#,
        core_imports: r#"(import "env" "next" (func $next (result i64)))"#,
        env: r#"(export "next" (func $next))"#,
        action,
        ..guest()
    }
    .build()
}

const SWITCH: &str = "[[strategy]]\nplugin = \"service-failover\"\npriority = -1\nconfig = { kinds = [\"Hostile\"] }\n";

/// An engine with these plugins, all asked before the one that saves the call.
pub(crate) async fn start(plugins: &[Hostile]) -> Started {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("plugins")).unwrap();
    let mut text = format!("plugins = \"plugins\"\n{}{SWITCH}", services(&["a", "b"]));
    for hostile in plugins {
        let file = home.path().join(format!("plugins/{}.wasm", hostile.name));
        std::fs::write(file, &hostile.bytes).unwrap();
        writeln!(text, "[[strategy]]\nplugin = {:?}", hostile.name).unwrap();
        // On a busy machine its time may be over before its memory.
        if hostile.name == "memory-bomb" {
            text.push_str("limits = { decision_deadline = \"2s\" }\n");
        }
    }
    start_in(home.path(), &text).await
}

pub(crate) fn script() -> Script {
    Script::default()
        .on("a/bad", bad(Kind::new("Hostile")))
        .on("a/good", [Reply::Slow(Duration::from_millis(1), "a's")])
        .on("b", good("b's"))
}

pub(crate) fn call(operation: &str) -> (Call, Request) {
    let call = Call::new("g", operation).repeat_safety(RepeatSafety::ReadOnly);
    (call, Request::new(operation, "{}"))
}

/// Bytes of memory the process holds.
pub(crate) fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = pages.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}
