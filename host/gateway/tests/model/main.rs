//! Models at the front: one whole answer or a clean error, whatever a provider does.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod anthropic;
mod front;
mod outage;
mod provider;
mod sampling;
mod stream;
mod whole;

#[path = "../support/mod.rs"]
mod support;

/// Delays of a few milliseconds, so that what takes seconds by default takes none.
const QUICK: &str = "[retry.default]\ninitial_delay = '5ms'\njitter = 'none'\n\
    [retry.TooManyRequests]\nmax_retries = 2\ninitial_delay = '5ms'\n\
    [completion]\nanswer = '700ms'\nfirst_token = '700ms'\nidle = '300ms'\n";
