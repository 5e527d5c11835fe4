//! The one error type that crosses folders: what is wrong, where, and what to do, with a small kind.
//!
//! Parsers and codecs have small typed errors of their own; where such an error leaves its folder it becomes an [`Error`].
//! Each [`Kind`] has one [`Disposition`], so that no caller decides by looking at text.

use std::error::Error as StdError;

/// Result with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of trouble it is. The kind alone decides what happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The configuration, or what a server is set up as, is not what Tidelock needs. A person must change it.
    Configuration,
    /// A server cannot be reached, or a connection broke. It is tried again.
    Unavailable,
    /// Who we are or what we may do is not accepted. A person must change it.
    Denied,
    /// A quota or rate limit is used up. It is tried again later.
    Limited,
    /// A peer sent bytes that its protocol does not allow. The stream stops; nothing is skipped.
    Protocol,
    /// One record or value is not acceptable to a side. The write becomes a dead letter; the rest goes on.
    Refused,
    /// The source no longer has what comes after our position (slot lost or re-created, replay id purged).
    StreamLost,
    /// The change log cannot be read or written (disk full, input/output error).
    Storage,
    /// The change log's bytes are not what was written.
    Corrupt,
    /// The operation was cancelled by a shutdown.
    Cancelled,
    /// An invariant of the program itself does not hold.
    Internal,
}

/// What is done about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Try the same operation again, with backoff.
    Retry,
    /// Drop the part's connection and state, and start it again from its durable position.
    RestartPart,
    /// Give up on this one record; keep it as a dead letter.
    RefuseRecord,
    /// Stop the link. Going on could lose or corrupt something, or a person must act first.
    Halt,
}

impl Kind {
    /// The one disposition of this kind.
    pub const fn disposition(self) -> Disposition {
        match self {
            Self::Unavailable => Disposition::RestartPart,
            Self::Limited => Disposition::Retry,
            Self::Refused => Disposition::RefuseRecord,
            Self::Configuration
            | Self::Denied
            | Self::Protocol
            | Self::StreamLost
            | Self::Storage
            | Self::Corrupt
            | Self::Cancelled
            | Self::Internal => Disposition::Halt,
        }
    }
}

/// An error with its kind, a message for a person, and the cause if there is one.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: Kind,
    message: String,
    #[source]
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind`; `message` says what is wrong, where, and what to do.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// The same error with its cause.
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same error with `context` put before its message.
    pub fn within(mut self, context: impl std::fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// What kind of trouble it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What is done about it.
    pub fn disposition(&self) -> Disposition {
        self.kind.disposition()
    }

    /// The message followed by its chain of causes, each said once.
    pub fn explain(&self) -> String {
        let mut text = self.message.clone();
        let mut cause: Option<&(dyn StdError + 'static)> = self.source();
        while let Some(error) = cause {
            let said = error.to_string();
            if !text.contains(&said) {
                text.push_str(": ");
                text.push_str(&said);
            }
            cause = error.source();
        }
        text
    }
}
