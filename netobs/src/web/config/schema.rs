//! What the file may say, before it is known to make sense.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, de::IgnoredAny};
use serde_saphyr::{Spanned, UserMessageFormatter};

/// A value that knows its line.
#[derive(Deserialize, PartialEq)]
#[serde(transparent)]
pub(super) struct Said<T>(Spanned<T>);

impl<T> Said<T> {
    pub(super) fn value(&self) -> &T {
        &self.0.value
    }

    /// What is wrong with this value of `field`.
    pub(super) fn problem(
        &self,
        field: impl fmt::Display,
        why: impl fmt::Display,
    ) -> anyhow::Error {
        anyhow::anyhow!("{}: {why}", self.place(field))
    }

    /// Where this value of `field` stands.
    pub(super) fn place(&self, field: impl fmt::Display) -> String {
        format!("line {}: {field}", self.0.referenced.line())
    }
}

pub(super) type Word = Option<Said<String>>;
pub(super) type Words = Option<Vec<Said<String>>>;
pub(super) type Pairs = BTreeMap<String, Said<String>>;

/// The whole file.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) tls_server_config: Option<Tls>,
    pub(super) http_server_config: Option<Http>,
    pub(super) basic_auth_users: Option<Pairs>,
    pub(super) rate_limit: Option<Said<IgnoredAny>>,
}

#[derive(Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    pub(super) cert: Word,
    pub(super) key: Word,
    pub(super) client_ca: Word,
    pub(super) cert_file: Word,
    pub(super) key_file: Word,
    pub(super) client_ca_file: Word,
    pub(super) client_auth_type: Word,
    pub(super) client_allowed_sans: Words,
    pub(super) min_version: Word,
    pub(super) max_version: Word,
    pub(super) cipher_suites: Words,
    pub(super) prefer_server_cipher_suites: Option<bool>,
    pub(super) curve_preferences: Words,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Http {
    /// Either is right: HTTP/1.1 is all that is served.
    #[serde(rename = "http2")]
    pub(super) _http2: Option<bool>,
    pub(super) headers: Option<Pairs>,
}

/// What `word` says. As with exporters, empty is as if it was not there.
pub(super) fn filled(word: &Word) -> Option<&Said<String>> {
    word.as_ref().filter(|word| !word.value().is_empty())
}

/// Reads `text`; what is empty says nothing.
pub(super) fn parse(text: &str) -> anyhow::Result<File> {
    let options = serde_saphyr::options! {
        // Its excerpts would show keys and hashes in the log.
        with_snippet: false,
        strict_booleans: true,
        // The most users, each a name and a hash, are a tenth of this.
        budget: serde_saphyr::budget! { max_nodes: 10_000 },
    };
    let file: Result<Option<File>, _> = serde_saphyr::from_str_with_options(text, options);
    let file = file.map_err(|error| {
        // In words for whoever writes the file, not for whoever calls the parser.
        let words = error.render_with_formatter(&UserMessageFormatter);
        anyhow::anyhow!("{}", words.trim_end())
    })?;
    Ok(file.unwrap_or_default())
}
