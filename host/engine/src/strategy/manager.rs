//! The fallback strategy manager.
