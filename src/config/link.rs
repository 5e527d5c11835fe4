//! `[link]`: the link's name, its change log, and the rules that hold where a mapping says nothing else.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use super::document::{Document, hint};
use super::secret::Surroundings;
use crate::change::{DeletePolicy, InitialMerge, Policy, Side};

/// The longest name that PostgreSQL takes for a slot or another object.
pub const NAME_MAX: usize = 63;

/// What a running link does when the org's fields are not those that the tables were made for any more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SchemaChanges {
    /// It goes on with the columns there are, and says what has changed; a person runs `tidelock init --apply`.
    #[default]
    Manual,
    /// It adds columns and widens them itself, where that is done in an instant and takes nothing away.
    Auto,
}

/// The link: one org, one database, their mappings and one change log.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["name"]))]
pub struct Link {
    /// The link's name: lower-case letters, digits and underscores. It names the replication slot and marks our own
    /// writes.
    #[schemars(regex(pattern = r"^[a-z_][a-z0-9_]{0,53}$"))]
    pub name: String,
    /// The folder of the change log. Relative paths start from this file's folder.
    pub log: PathBuf,
    /// Whose value stands where clocks cannot tell.
    pub system_of_record: Side,
    /// How conflicts between unequal values end.
    pub policy: Policy,
    /// What wins when a record is deleted on one side and edited, unseen, on the other.
    pub delete: DeletePolicy,
    /// How far apart two commits must be for `last_write_wins` to go by time, in milliseconds. Salesforce's have
    /// whole seconds.
    #[schemars(range(max = 600_000))]
    pub tolerance_ms: u32,
    /// Whose values stand where both sides hold a record already when they are first joined.
    pub initial_merge: InitialMerge,
    /// What is done about fields that are added, changed or removed in the org while the link runs.
    pub schema: SchemaChanges,
    /// How often the org is asked to describe what is mapped, besides each time that its events have another schema. One API
    /// call for each mapping.
    #[schemars(range(min = 1, max = 86_400))]
    pub describe_seconds: u32,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            name: String::new(),
            log: PathBuf::from("tidelock-log"),
            system_of_record: Side::Salesforce,
            policy: Policy::LastWriteWins,
            delete: DeletePolicy::UpdateWins,
            tolerance_ms: 2_000,
            initial_merge: InitialMerge::Salesforce,
            schema: SchemaChanges::Manual,
            describe_seconds: 900,
        }
    }
}

impl Link {
    pub(super) fn check(&mut self, doc: &mut Document<'_>, around: Option<&Surroundings<'_>>) {
        const NAME_LIMIT: usize = NAME_MAX - "tidelock_".len();
        if !doc.has("link.name") {
            doc.missing("link", "name");
        } else if let Some(problem) = name_problem(&self.name, NAME_LIMIT) {
            doc.fault("link.name", format!("the link's name {problem}"), hint("link", "name"));
        }
        if self.log.as_os_str().is_empty() {
            doc.fault("link.log", "`log` is empty", hint("link", "log"));
        }
        if let Some(around) = around {
            self.log = around.path(&self.log);
        }
        doc.in_range("link", "tolerance_ms", self.tolerance_ms, 0..=600_000);
        doc.in_range("link", "describe_seconds", self.describe_seconds, 1..=86_400);
    }
}

/// What is wrong with a name that PostgreSQL must take as a slot name, if anything.
pub(super) fn name_problem(name: &str, limit: usize) -> Option<String> {
    if name.is_empty() {
        Some("is empty".to_owned())
    } else if name.len() > limit {
        Some(format!("has {} letters, and at most {limit} are allowed", name.len()))
    } else if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
        Some("holds something other than lower-case letters, digits and underscores".to_owned())
    } else if !name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_') {
        Some("does not begin with a letter".to_owned())
    } else {
        None
    }
}
