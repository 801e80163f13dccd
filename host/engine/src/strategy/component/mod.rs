//! Strategies as WebAssembly components.
