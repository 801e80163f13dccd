//! One text for equal JSON: keys sorted, no white space (RFC 8785 without its number rules).
//!
//! Two requests are the same request when their canonical arguments are equal; the visited set and
//! the store of last known good answers rest on it.

use bytes::Bytes;

/// The canonical form; the text itself where it is not JSON.
pub(crate) fn canonical(json: &[u8]) -> Bytes {
    // `serde_json::Map` is a BTreeMap unless a dependency switches `preserve_order` on, so sort.
    match serde_json::from_slice::<serde_json::Value>(json) {
        // Two numbers too large or too fine for a machine word may read as one.
        Ok(value) if has_float(&value) => Bytes::copy_from_slice(json),
        Ok(mut value) => {
            value.sort_all_objects();
            serde_json::to_vec(&value).map_or_else(|_| Bytes::copy_from_slice(json), Bytes::from)
        }
        Err(_) => Bytes::copy_from_slice(json),
    }
}

fn has_float(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::Number(number) => number.is_f64(),
        serde_json::Value::Array(items) => items.iter().any(has_float),
        serde_json::Value::Object(members) => members.values().any(has_float),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_white_space_do_not_matter_and_values_do() {
        assert_eq!(
            canonical(br#"{"b": 1, "a": {"d":2, "c":3}}"#),
            canonical(br#"{"a":{"c":3,"d":2},"b":1}"#)
        );
        assert_ne!(canonical(br#"{"a":1}"#), canonical(br#"{"a":2}"#));
        assert_ne!(canonical(br#"[1,2]"#), canonical(br#"[2,1]"#));
        assert_ne!(
            canonical(br#"{"a":123456789012345678901}"#),
            canonical(br#"{"a":123456789012345678902}"#)
        );
        assert_eq!(canonical(b"not json"), "not json");
    }
}
