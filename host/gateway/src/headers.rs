//! Header fields of a configuration, as HTTP wants them.

use std::collections::BTreeMap;

use backstop::config::Expanded;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

/// The header fields that are sent with every request to a server or a model.
///
/// # Errors
/// One sentence that names the field, and not its value, which may be a secret.
pub(crate) fn header_map(headers: &BTreeMap<String, Expanded>) -> Result<HeaderMap, String> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let header = HeaderName::try_from(name.as_str())
            .map_err(|_| format!("the header name {name:?} is not one of HTTP; correct it"))?;
        let mut value = HeaderValue::try_from(value.value()).map_err(|_| {
            format!("the value of header {name:?} has characters HTTP does not allow; correct it")
        })?;
        value.set_sensitive(true);
        map.insert(header, value);
    }
    Ok(map)
}
