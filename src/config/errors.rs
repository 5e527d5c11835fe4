//! What is wrong with a configuration: each fault with its line, and what to write instead.

use std::fmt;

use crate::error::{Error, Kind};

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong. Never holds a value that could be a secret.
    pub what: String,
    /// What to write instead.
    pub write: String,
}

/// Every fault that was found in a configuration file, by line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The file's name as it is to be shown.
    pub file: String,
    /// The faults, by line. Never empty.
    pub errors: Vec<ConfigError>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, error) in self.errors.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}:{}: {}; write: {}", self.file, error.line, error.what, error.write)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl From<ConfigErrors> for Error {
    fn from(errors: ConfigErrors) -> Self {
        Self::new(Kind::Configuration, errors.to_string())
    }
}
