//! `http_server_config.headers`: the few that a response may have besides.

use hyper::header::{self, HeaderName, HeaderValue};

use super::schema::Pairs;

/// What may be set, as it is written in the file, and to which values; to any where
/// there are none.
const ALLOWED: [(&str, HeaderName, &[&str]); 5] = [
    (
        "Content-Security-Policy",
        header::CONTENT_SECURITY_POLICY,
        &[],
    ),
    (
        "X-Frame-Options",
        header::X_FRAME_OPTIONS,
        &["deny", "sameorigin"],
    ),
    (
        "X-Content-Type-Options",
        header::X_CONTENT_TYPE_OPTIONS,
        &["nosniff"],
    ),
    ("X-XSS-Protection", header::X_XSS_PROTECTION, &[]),
    (
        "Strict-Transport-Security",
        header::STRICT_TRANSPORT_SECURITY,
        &[],
    ),
];

/// The headers to set. A blank value sets none.
pub(super) fn checked(said: Pairs) -> anyhow::Result<Vec<(HeaderName, HeaderValue)>> {
    let mut headers = Vec::new();
    for (name, value) in said {
        let field = format!("http_server_config.headers.{name}");
        let Some((_, header, values)) = ALLOWED.iter().find(|(allowed, ..)| *allowed == name)
        else {
            let allowed = ALLOWED.map(|(name, ..)| name).join(", ");
            return Err(value.problem(field, format!("cannot be set, only {allowed}")));
        };
        let text = value.value().as_str();
        if text.is_empty() {
            continue;
        }
        if !values.is_empty() && !values.contains(&text) {
            return Err(value.problem(field, format!("may be {} only", values.join(" or "))));
        }
        let text = HeaderValue::from_str(text)
            .map_err(|_| value.problem(field, "has characters that no header may have"))?;
        headers.push((header.clone(), text));
    }
    Ok(headers)
}
