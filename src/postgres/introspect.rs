//! What a database's tables look like, read from the catalogs.
//!
//! Domains are followed to their base types, because that is what the values of such a column look like on the wire and
//! what text can be cast to without a domain's length silently cutting it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_postgres::{Client, Row};

use super::connect::database_error;
use crate::error::{Error, Kind, Result};
use crate::mapping::describe::{ColumnDescription, TableDescription};

const TABLES: &str = include_str!("../../sql/describe_tables.sql");
const COLUMNS: &str = include_str!("../../sql/describe_columns.sql");
const INDEXES: &str = include_str!("../../sql/describe_indexes.sql");

/// The longest that a catalog query may take.
const QUERY_TIMEOUT: Duration = Duration::from_secs(30);

/// Everything about a table that Tidelock asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableDetail {
    /// The table's identity in the catalogs.
    pub oid: u32,
    /// `r` ordinary, `p` partitioned, or another `relkind` (view, foreign table) that cannot be a mirror.
    pub relkind: char,
    /// The schema.
    pub schema: String,
    /// The table.
    pub table: String,
    /// The role that owns it.
    pub owner: String,
    /// `d` default (primary key), `f` full, `i` an index, `n` nothing.
    pub replica_identity: char,
    /// Whether the table is logged: an unlogged or temporary table never reaches the stream.
    pub logged: bool,
    /// Whether row security applies to it.
    pub row_security: bool,
    /// Whether it has rules (`CREATE RULE`).
    pub has_rules: bool,
    /// Columns whose updates change rows of other tables, by a foreign key.
    pub followed: Vec<String>,
    /// The columns, in the table's order.
    pub columns: Vec<ColumnDetail>,
    /// Its indexes that enforce uniqueness over plain columns.
    pub unique: Vec<UniqueIndex>,
    /// The columns that any whole, valid index begins with.
    pub indexed: Vec<String>,
    /// The names of its triggers that users or programs made, in name order.
    pub triggers: Vec<String>,
}

/// One column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnDetail {
    /// Its name.
    pub name: String,
    /// The type, domains followed to their base.
    pub type_oid: u32,
    /// The type as SQL with its length, for people.
    pub type_name: String,
    /// The type as SQL without any length: a cast to it never cuts a value.
    pub cast: String,
    /// `pg_type.typcategory` of the type: `S` text, `N` number, `E` enum and so on.
    pub category: char,
    /// The most characters, for `varchar(n)` and `char(n)`.
    pub length: Option<u32>,
    /// Whether it may be null.
    pub nullable: bool,
    /// Whether the server computes it.
    pub generated: bool,
    /// Whether it has a default or is an identity column.
    pub defaulted: bool,
    /// Whether the type is a domain over the one that is named here.
    pub domain: bool,
    /// The values of an enum, in its order; empty for any other type.
    pub labels: Vec<String>,
}

/// One unique index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UniqueIndex {
    /// Its name.
    pub name: String,
    /// Its columns, in order.
    pub columns: Vec<String>,
    /// Whether it is the primary key.
    pub primary: bool,
    /// Whether it is the replica identity (`REPLICA IDENTITY USING INDEX`).
    pub replica_identity: bool,
    /// Whether it covers only some rows.
    pub partial: bool,
    /// Whether it is checked at once: a deferrable one cannot settle `ON CONFLICT`.
    pub immediate: bool,
    /// Whether it is valid (a failed `CREATE INDEX CONCURRENTLY` leaves an invalid one).
    pub valid: bool,
}

impl TableDetail {
    /// The primary key's columns, in key order; empty if there is none.
    pub fn key_columns(&self) -> Vec<String> {
        self.unique.iter().find(|index| index.primary).map(|index| index.columns.clone()).unwrap_or_default()
    }

    /// The column of this name.
    pub fn column(&self, name: &str) -> Option<&ColumnDetail> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Whether a whole, immediate unique index is over exactly this column.
    pub fn enforces(&self, column: &str) -> bool {
        self.unique.iter().any(|index| {
            index.valid
                && !index.partial
                && index.immediate
                && index.columns.len() == 1
                && index.columns.first().is_some_and(|name| name == column)
        })
    }

    /// The neutral description.
    pub fn describe(&self) -> TableDescription {
        TableDescription {
            schema: self.schema.clone(),
            table: self.table.clone(),
            key_columns: self.key_columns(),
            columns: self
                .columns
                .iter()
                .map(|column| ColumnDescription {
                    name: column.name.clone(),
                    type_oid: column.type_oid,
                    type_name: column.type_name.clone(),
                    nullable: column.nullable,
                    generated: column.generated,
                    domain: column.domain,
                    labels: column.labels.clone(),
                })
                .collect(),
            replica_identity: self.replica_identity,
        }
    }
}

/// The neutral descriptions of those of the named tables that exist, in name order.
pub async fn describe_tables(client: &Client, schema: &str, names: &[String]) -> Result<Vec<TableDescription>> {
    Ok(table_details(client, schema, names).await?.iter().map(TableDetail::describe).collect())
}

/// Everything about those of the named tables that exist, in name order.
pub async fn table_details(client: &Client, schema: &str, names: &[String]) -> Result<Vec<TableDetail>> {
    let read = async {
        let tables = client.query(TABLES, &[&schema, &names]).await?;
        let columns = client.query(COLUMNS, &[&schema, &names]).await?;
        let indexes = client.query(INDEXES, &[&schema, &names]).await?;
        assemble(schema, &tables, &columns, &indexes)
    };
    let failed = || format!("reading the description of the tables of schema {schema:?}");
    match tokio::time::timeout(QUERY_TIMEOUT, read).await {
        Ok(Ok(details)) => Ok(details),
        Ok(Err(error)) => Err(database_error(&failed(), error)),
        Err(_) => Err(Error::new(Kind::Unavailable, format!("PostgreSQL did not answer in time while {}", failed()))),
    }
}

fn assemble(
    schema: &str,
    tables: &[Row],
    columns: &[Row],
    indexes: &[Row],
) -> Result<Vec<TableDetail>, tokio_postgres::Error> {
    let mut details = BTreeMap::new();
    for row in tables {
        let table: String = row.try_get(1)?;
        details.insert(
            table.clone(),
            TableDetail {
                oid: row.try_get(0)?,
                relkind: letter(row, 2)?,
                schema: schema.to_owned(),
                table,
                owner: row.try_get(3)?,
                replica_identity: letter(row, 4)?,
                logged: row.try_get(5)?,
                row_security: row.try_get(6)?,
                columns: Vec::new(),
                unique: Vec::new(),
                triggers: row.try_get(7)?,
                indexed: row.try_get(8)?,
                has_rules: row.try_get(9)?,
                followed: row.try_get(10)?,
            },
        );
    }
    for row in columns {
        if let Some(detail) = details.get_mut(row.try_get::<_, &str>(0)?) {
            detail.columns.push(column(row)?);
        }
    }
    for row in indexes {
        if let Some(detail) = details.get_mut(row.try_get::<_, &str>(0)?) {
            detail.unique.push(unique_index(row)?);
        }
    }
    Ok(details.into_values().collect())
}

fn letter(row: &Row, index: usize) -> Result<char, tokio_postgres::Error> {
    Ok(row.try_get::<_, &str>(index)?.chars().next().unwrap_or('?'))
}

fn column(row: &Row) -> Result<ColumnDetail, tokio_postgres::Error> {
    Ok(ColumnDetail {
        name: row.try_get(1)?,
        type_oid: row.try_get(2)?,
        type_name: row.try_get(3)?,
        cast: row.try_get(4)?,
        length: row.try_get::<_, Option<i32>>(5)?.and_then(|length| u32::try_from(length).ok()),
        nullable: row.try_get(6)?,
        generated: row.try_get(7)?,
        defaulted: row.try_get(8)?,
        category: letter(row, 9)?,
        labels: row.try_get(10)?,
        domain: row.try_get(11)?,
    })
}

fn unique_index(row: &Row) -> Result<UniqueIndex, tokio_postgres::Error> {
    Ok(UniqueIndex {
        name: row.try_get(1)?,
        columns: row.try_get(2)?,
        primary: row.try_get(3)?,
        replica_identity: row.try_get(4)?,
        partial: row.try_get(5)?,
        immediate: row.try_get(6)?,
        valid: row.try_get(7)?,
    })
}
