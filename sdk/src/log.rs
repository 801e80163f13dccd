//! Log lines, for the host's log and its explanation of the call; the caller never sees them.
//!
//! ```
//! use backstop_sdk::prelude::*;
//!
//! fn note(host: &dyn Host, tried: usize) {
//!     log::info!(host, "{tried} targets tried");
//! }
//! ```
//!
//! The host cuts a line at its limit and drops what exceeds the strategy's log budget.

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

macro_rules! levels {
    ($dollar:tt $($macro:ident $name:ident $level:ident $text:literal;)*) => {$(
        #[doc = concat!("Logs a line at level ", $text, ": the host, then as `format!` takes it.")]
        #[doc(hidden)]
        #[macro_export]
        macro_rules! $macro {
            ($dollar host:expr, $dollar($dollar arg:tt)+) => {
                $crate::Host::log($dollar host, $crate::log::LogLevel::$level, &::std::format!($dollar($dollar arg)+))
            };
        }
        #[doc(inline)]
        pub use $macro as $name;
    )*};
}

levels! { $
    __log_trace trace Trace "trace";
    __log_debug debug Debug "debug";
    __log_info info Info "info";
    __log_warn warn Warn "warn";
    __log_error error Error "error";
}
