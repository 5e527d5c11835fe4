//! Paths and query strings of URLs.

use super::rest::VERSIONS;

/// Undoes percent-encoding; `plus` makes a plus sign a space, as in forms.
pub(crate) fn decode(text: &str, plus: bool) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = if *first == b'%' { tail.get(..2).and_then(|h| std::str::from_utf8(h).ok()) } else { None };
        if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            bytes.push(byte);
            rest = tail.get(2..).unwrap_or_default();
        } else {
            bytes.push(if plus && *first == b'+' { b' ' } else { *first });
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The pairs of a form or a query string.
pub(crate) fn pairs(text: &str) -> Vec<(String, String)> {
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key, true), decode(value, true))
        })
        .collect()
}

/// What a path below the data API asks for: the version, the decoded segments after it, and the query.
pub(crate) type DataPath = (u32, Vec<String>, Vec<(String, String)>);

/// Takes `/services/data/vNN.0/a/b?c=d` apart; `None` when it is not of that form or the version is not served.
pub(crate) fn data_path(url: &str) -> Option<DataPath> {
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let path = path.trim_start_matches('/');
    let path = path.strip_prefix("services/data/").unwrap_or(path);
    let mut segments = path.split('/');
    let version: u32 = segments.next()?.strip_prefix('v')?.strip_suffix(".0")?.parse().ok()?;
    let segments = segments.map(|s| decode(s, false)).filter(|s| !s.is_empty()).collect();
    VERSIONS.contains(&version).then(|| (version, segments, pairs(query)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let (version, path, query) = data_path("/services/data/v66.0/sobjects/Account/?a=1%2B2+3&b").unwrap();
        assert_eq!(version, 66);
        assert_eq!(path, ["sobjects", "Account"]);
        assert_eq!(query, [("a".to_owned(), "1+2 3".to_owned()), ("b".to_owned(), String::new())]);
        assert_eq!(data_path("v66.0/limits").map(|p| p.1), Some(vec!["limits".to_owned()]));
        for bad in
            ["/services/data/v20.0/", "/services/data/v66/", "/services/data", "/nonsense", "/services/data/v99.0"]
        {
            assert_eq!(data_path(bad), None, "{bad}");
        }
        assert_eq!(decode("%C3%A9%zz%", false), "é%zz%");
    }
}
