//! What a check has found: one line each for people, one object each for programs.

use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// It works, but not as well or as safely as it could.
    Warning,
    /// Tidelock does not start with this.
    Error,
}

/// One finding of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Where: a mapping, a field (`contact.LastName`), a table, a server setting.
    pub subject: String,
    /// What is the case.
    pub message: String,
    /// What to do; empty if nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub advice: String,
}

impl Finding {
    /// All is well with `subject`.
    pub fn ok(subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Ok, subject: subject.into(), message: message.into(), advice: String::new() }
    }

    /// Something that could be better.
    pub fn warning(subject: impl Into<String>, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, subject: subject.into(), message: message.into(), advice: advice.into() }
    }

    /// Something that must be mended first.
    pub fn error(subject: impl Into<String>, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { severity: Severity::Error, subject: subject.into(), message: message.into(), advice: advice.into() }
    }

    /// Whether it must be mended first.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.subject, self.message)?;
        if self.advice.is_empty() { Ok(()) } else { write!(f, "; {}", self.advice) }
    }
}
