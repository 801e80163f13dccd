//! Service discovery: which targets there are, in which groups, and which one is asked next.
// STUB: replaced by the registry helper. Public API below is agreed.

use std::sync::Arc;

/// One target.
#[derive(Debug)]
pub struct Target {
    /// Its name, unique in the host.
    pub name: Arc<str>,
}
