//! Reading one number out of a JSON text of our own, without a JSON reader.

/// The first number that a JSON text has under this key.
pub(crate) fn number_named(json: &str, key: &str) -> Option<u64> {
    let (_, rest) = json.split_once(&format!("\"{key}\""))?;
    let rest = rest.trim_start().strip_prefix(':')?.trim_start();
    let end = rest.find(|digit: char| !digit.is_ascii_digit());
    rest[..end.unwrap_or(rest.len())].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_found_under_its_key() {
        let json = r#"{ "a": 1, "fault_service_total_ns" : 1234, "b": 5 }"#;
        assert_eq!(number_named(json, "fault_service_total_ns"), Some(1234));
        assert_eq!(number_named(json, "b"), Some(5));
        assert_eq!(number_named(json, "c"), None);
    }
}
