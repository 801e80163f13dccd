//! The stock strategies, prebuilt, so that a program that only runs strategies needs no tools to
//! build one. One file each under `stock/`, made from the crates of `plugins/`.

macro_rules! stock {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../../../stock/", $name, ".wasm")))),*]
    };
}

const STOCK: &[(&str, &[u8])] = stock![
    "retry",
    "service-failover",
    "model-failover",
    "operation-fallback",
    "data-fallback",
    "fail-fast",
];

/// Every stock strategy: its plugin name, and its component.
pub fn stock() -> &'static [(&'static str, &'static [u8])] {
    STOCK
}
