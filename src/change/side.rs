//! The two sides of a link.

/// One of the two places where users edit.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The PostgreSQL database.
    Postgres = 0,
    /// The Salesforce org.
    Salesforce = 1,
}

impl Side {
    /// Both sides, in index order.
    pub const BOTH: [Self; 2] = [Self::Postgres, Self::Salesforce];

    /// The opposite side.
    pub const fn other(self) -> Self {
        match self {
            Self::Postgres => Self::Salesforce,
            Self::Salesforce => Self::Postgres,
        }
    }

    /// 0 or 1, for arrays with a slot per side.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The name used in configuration, the CLI, metrics and the log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Salesforce => "salesforce",
        }
    }
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}
