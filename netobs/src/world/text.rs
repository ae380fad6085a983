//! Bytes that the kernel or another user chose, as text.

use std::{ffi::OsStr, fmt::Write as _, os::unix::ffi::OsStrExt as _};

/// `bytes` as text that loses nothing: what is not UTF-8 becomes `\xNN`.
#[must_use]
pub fn lossless(bytes: &[u8]) -> String {
    lossless_with(bytes, "\\x")
}

/// The same with another beginning of an escape.
pub(super) fn lossless_with(bytes: &[u8], escape: &str) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(text, "{escape}{byte:02x}");
        }
    }
    text
}

/// The same for a file name.
#[must_use]
pub fn lossless_os(name: &OsStr) -> String {
    lossless(name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_bytes_stay_readable() {
        assert_eq!(lossless(b"caf\xc3\xa9"), "café");
        assert_eq!(lossless(b"a\xff\xfeb"), "a\\xff\\xfeb");
    }
}
