//! Dots and vectors: which changes of a record are included in what.
//!
//! A dot names one change by its side and its count within the record; a vector counts how many changes of each side are
//! included (Almeida et al., "Scalable and Accurate Causality Tracking for Eventually Consistent Stores", 2014, dotted version vectors).

use super::Side;

/// One change of a record: the `n`th of its side. `n` = 0 is nobody's: the state before any change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Dot {
    /// Whose change it is.
    pub side: Side,
    /// Its count within the record and side, from 1.
    pub n: u64,
}

impl Dot {
    /// The dot of the state before any change.
    pub const NOBODY: Self = Self { side: Side::Postgres, n: 0 };

    /// Whether this is the state before any change.
    pub const fn is_nobody(self) -> bool {
        self.n == 0
    }
}

impl std::fmt::Display for Dot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_nobody() { f.write_str("-") } else { write!(f, "{}:{}", self.side, self.n) }
    }
}

/// How many changes of each side are included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Vector {
    /// Changes by PostgreSQL's users.
    pub postgres: u64,
    /// Changes by Salesforce's users.
    pub salesforce: u64,
}

impl Vector {
    /// The count of one side.
    pub const fn get(self, side: Side) -> u64 {
        match side {
            Side::Postgres => self.postgres,
            Side::Salesforce => self.salesforce,
        }
    }

    /// The count of one side, to change it.
    pub fn get_mut(&mut self, side: Side) -> &mut u64 {
        match side {
            Side::Postgres => &mut self.postgres,
            Side::Salesforce => &mut self.salesforce,
        }
    }

    /// Includes `dot` and all earlier changes of its side.
    pub fn include(&mut self, dot: Dot) {
        let n = self.get_mut(dot.side);
        *n = (*n).max(dot.n);
    }

    /// Whether `dot` is included.
    pub const fn covers(self, dot: Dot) -> bool {
        self.get(dot.side) >= dot.n
    }

    /// Whether everything in `other` is included.
    pub const fn covers_all(self, other: Self) -> bool {
        self.postgres >= other.postgres && self.salesforce >= other.salesforce
    }

    /// Whether neither includes the other.
    pub const fn concurrent(self, other: Self) -> bool {
        !self.covers_all(other) && !other.covers_all(self)
    }
}

impl std::fmt::Display for Vector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{{postgres: {}, salesforce: {}}}", self.postgres, self.salesforce)
    }
}
