//! How Tidelock's own messages get into the stream that capture reads.

use postgres_protocol::escape::{escape_identifier, escape_literal};

/// Where messages are put between the changes: they belong to their transaction, and have their place in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Marks {
    /// Into the server's log.
    #[default]
    Wal,
    /// Into the log of the triggers in this schema.
    TriggerLog(String),
}

impl Marks {
    /// The statement that puts a message there.
    pub fn emit(&self, prefix: &str, content: &str) -> String {
        self.call(&escape_literal(prefix), &escape_literal(content))
    }

    /// The same with parameters: the prefix and the content, as text.
    pub fn emit_parameters(&self) -> String {
        self.call("$1::pg_catalog.text", "$2::pg_catalog.text")
    }

    fn call(&self, prefix: &str, content: &str) -> String {
        match self {
            Self::Wal => format!("SELECT pg_catalog.pg_logical_emit_message(true, {prefix}, {content})"),
            Self::TriggerLog(schema) => {
                format!("SELECT {}.tidelock_log_message({prefix}, {content})", escape_identifier(schema))
            }
        }
    }
}
