//! How a run can fail, and the exit code that scripts rely on.

use std::{fmt, process::ExitCode};

/// Why netobs ends other than well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Something broke while running.
    Run,
    /// The command line or the environment asks for what cannot be.
    Usage,
    /// A capability is missing.
    NotPermitted,
    /// The kernel lacks something.
    Kernel,
    /// `--strict`, and some namespace could not be observed fully.
    Partial,
}

impl Cause {
    /// The exit code.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Run => 1,
            Self::Usage => 2,
            Self::NotPermitted => 3,
            Self::Kernel => 4,
            Self::Partial => 5,
        }
    }
}

/// A failure with its cause and what to tell.
#[derive(Debug)]
pub struct Failure {
    /// What kind it is.
    pub cause: Cause,
    /// The chain of reasons.
    pub error: anyhow::Error,
}

impl Failure {
    /// A failure of kind `cause`.
    #[must_use]
    pub fn new(cause: Cause, error: anyhow::Error) -> Self {
        Self { cause, error }
    }

    /// A failure of kind `cause` in words.
    #[must_use]
    pub fn words(cause: Cause, words: impl fmt::Display) -> Self {
        Self::new(cause, anyhow::anyhow!("{words}"))
    }

    /// The exit code.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.cause.code())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Cause::Run, error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Chain(&self.error).fmt(f)
    }
}

/// A chain of reasons on one line, each of them once: some libraries repeat
/// their cause in their own text.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a anyhow::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = String::new();
        for (depth, cause) in self.0.chain().enumerate() {
            let text = cause.to_string();
            if said.contains(&text) {
                continue;
            }
            if depth > 0 {
                f.write_str(": ")?;
            }
            f.write_str(&text)?;
            said.push_str(&text);
        }
        Ok(())
    }
}
