//! Write fallback strategies for [backstop](https://github.com/backstop-dev/backstop).
//!
//! A strategy owns one policy: *when* it applies to a failure, and *what* to do about it. Everything
//! else (finding out what failed, waiting, budgets, deadlines, health, circuits) is the host's work,
//! which also checks every proposal before it is carried out. A strategy is shipped as one file, a
//! WebAssembly component; this crate makes one out of a Rust type.
//!
//! # From nothing to a strategy
//!
//! Five minutes, most of them a compiler's:
//!
//! ```text
//! rustup target add wasm32-wasip2
//! backstop plugin new impatient       # a project: source, schema of its configuration, test cases
//! cd impatient
//! backstop plugin build               # dist/impatient.wasm, its size and its digest
//! backstop plugin test                # the cases of cases.toml, in the real sandbox
//! backstop plugin run --context '{ "failure": { "kind": "TimeoutError" }, "attempts": 2 }'
//! ```
//!
//! It does something useful already, so there is something to change. From here on:
//!
//! 1. What `plugin new` has written into `Cargo.toml`, for whoever starts from an empty crate:
//!
//!    ```toml
//!    [lib]
//!    crate-type = ["cdylib"]
//!
//!    [dependencies]
//!    backstop-sdk = "0.1"
//!    serde = { version = "1", features = ["derive"] }
//!
//!    [dev-dependencies]
//!    backstop-sdk = { version = "0.1", features = ["testing"] }
//!
//!    [profile.release]
//!    opt-level = "s"
//!    lto = true
//!    strip = true
//!    panic = "abort"
//!    ```
//!
//! 2. A type that implements [`Strategy`], and [`export!`]:
//!
//!    ```
//!    use backstop_sdk::prelude::*;
//!    use serde::Deserialize;
//!
//!    /// Leaves a target that was silent, if the caller cares enough.
//!    struct Impatient {
//!        config: Config,
//!    }
//!
//!    #[derive(Deserialize)]
//!    #[serde(default, deny_unknown_fields)]
//!    struct Config {
//!        min_importance: u8,
//!    }
//!
//!    impl Default for Config {
//!        fn default() -> Self {
//!            Self { min_importance: 50 }
//!        }
//!    }
//!
//!    const SCHEMA: &str = r#"{
//!        "type": "object",
//!        "additionalProperties": false,
//!        "properties": { "min_importance": { "type": "integer", "minimum": 0, "maximum": 100 } }
//!    }"#;
//!
//!    impl Strategy for Impatient {
//!        type Config = Config;
//!
//!        fn metadata() -> Metadata {
//!            Metadata::new("impatient", env!("CARGO_PKG_VERSION"), "Leaves a silent target.")
//!                .level(Level::SERVICE)
//!                .priority(90)
//!                .kinds([Kind::TIMEOUT_ERROR])
//!                .config_schema(SCHEMA)
//!        }
//!
//!        fn configure(config: Config, _: &mut Setup) -> Result<Self, String> {
//!            Ok(Self { config })
//!        }
//!
//!        fn condition(&self, failure: &Failure, _: &dyn Host) -> bool {
//!            failure.importance >= self.config.min_importance && failure.traits.repeatable
//!        }
//!
//!        fn action(&self, failure: &Failure, host: &dyn Host) -> Decision {
//!            log::debug!(host, "{} left after {} attempts", host.target(), failure.attempts);
//!            Decision::switch().because("the target was silent")
//!        }
//!    }
//!
//!    backstop_sdk::export!(Impatient);
//!
//!    // Natively, without a sandbox:
//!    # #[cfg(feature = "testing")] {
//!    use backstop_sdk::testing::{FakeHost, Tester};
//!
//!    let strategy = Tester::<Impatient>::new(r#"{ "min_importance": 80 }"#)?;
//!    let failure = Failure::new(Kind::TIMEOUT_ERROR);
//!    let host = FakeHost::new();
//!    assert_eq!(strategy.decide(&Failure { importance: 90, ..failure.clone() }, &host), Some(
//!        Decision::switch().because("the target was silent")
//!    ));
//!    assert_eq!(strategy.decide(&Failure { importance: 10, ..failure }, &host), None);
//!    # }
//!    # Ok::<(), String>(())
//!    ```
//!
//! 3. What must hold in the sandbox, as data. Each case is a situation and what is expected of the
//!    strategy in it; time stands still and chance repeats. `backstop plugin test` shows what differs:
//!
//!    ```toml
//!    # cases.toml
//!    [defaults]
//!    failure = { kind = "TimeoutError", silent = true }
//!    target = "a"
//!    targets = [{ name = "a" }, { name = "b" }]
//!
//!    [[case]]
//!    name = "who cares little can wait"
//!    config = { min_importance = 80 }
//!    call = { importance = 10 }
//!    expect = { condition = false }
//!
//!    [[case]]
//!    name = "who cares is moved"
//!    config = { min_importance = 80 }
//!    call = { importance = 90 }
//!    expect = { action = { switch_target = {} }, reason = "the target was silent" }
//!    ```
//!
//! 4. `backstop plugin check` finds what a host would refuse, and what it would wonder at;
//!    `backstop plugin inspect` shows what the strategy wants and gets; `backstop plugin bench` what a
//!    decision costs.
//! 5. Copy `dist/impatient.wasm` into the folder that `plugins` names in the host's configuration. It
//!    takes part in the next failure. Its configuration, where it needs one:
//!
//!    ```toml
//!    plugins = "plugins.d"
//!
//!    [[strategy]]
//!    plugin = "impatient"
//!    config = { min_importance = 80 }
//!    ```
//!
//! 6. `backstop plugin push REGISTRY/impatient:1.0.0` puts it into an OCI registry, and
//!    `backstop plugin pull` gets it elsewhere; what it prints as `pinned` names exactly this content.
//!
//! Other languages have the same commands: [`languages`].
//!
//! # What to know
//!
//! - `condition` and `action` of one failure run in one instance, which nobody else uses meanwhile.
//!   Whether the instance decides again is the host's affair: what must last belongs into the state
//!   ([`Host::state_set`]).
//! - The host does not ask a strategy outside the kinds and operations its [`Metadata`] names. A
//!   strategy whose *configuration* names kinds declares none, and looks in `condition`.
//! - There is no network, no environment and no file system but the granted folder
//!   ([`Host::read_file`]). Clocks and random numbers come from the [`Host`], so that a test or a
//!   simulation can drive them.
//! - A panic is logged and ends the instance; the call goes on with the next strategy.
//!
//! The contract itself, for other languages, is the WIT package `backstop:strategy`.

#![deny(missing_docs)]

#[doc = include_str!("languages.md")]
pub mod languages {}

mod decision;
mod failure;
#[cfg(target_family = "wasm")]
#[doc(hidden)]
pub mod guest;
mod host;
pub mod log;
mod metadata;
mod strategy;
#[cfg(all(feature = "testing", not(target_family = "wasm")))]
pub mod testing;
mod word;

pub use decision::{Action, AnswerData, Decision};
pub use failure::{Failure, Traits};
pub use host::{Attempt, FolderError, Host, KnownGood, StateError, Target};
pub use metadata::Metadata;
pub use strategy::{Setup, Strategy};
pub use word::{Capability, Kind, Level, TargetKind};

pub use serde_json;

/// Everything a strategy usually names.
pub mod prelude {
    pub use crate::log;
    pub use crate::{
        Action, Attempt, Capability, Decision, Failure, FolderError, Host, Kind, KnownGood, Level,
        Metadata, Setup, StateError, Strategy, Target, TargetKind, Traits,
    };
}

/// Makes the crate a component that exports this strategy. Once per crate; the type implements
/// [`Strategy`].
///
/// On any other platform it only checks that the type is a strategy, so that the crate's tests run
/// natively.
#[macro_export]
macro_rules! export {
    ($strategy:ty) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            ::std::thread_local! {
                static STRATEGY: ::std::cell::OnceCell<$strategy> = const { ::std::cell::OnceCell::new() };
            }
            struct Component;
            impl $crate::guest::Exported for Component {
                type Strategy = $strategy;
                fn slot<R>(visit: impl FnOnce(&::std::cell::OnceCell<$strategy>) -> R) -> R {
                    STRATEGY.with(visit)
                }
            }
            type Policy = $crate::guest::Policy<Component>;
            $crate::guest::bindings::export_policy!(Policy with_types_in $crate::guest::bindings);
        };
        #[cfg(not(target_family = "wasm"))]
        const _: fn() -> $crate::Metadata = <$strategy as $crate::Strategy>::metadata;
    };
}
