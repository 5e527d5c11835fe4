//! Whether somebody has changed what a publication publishes, between two looks.
//!
//! The stream does not tell that: while a table was out of its publication, or the publication left out updates or some rows,
//! what was done there never comes, and after it was put right nothing shows. But each such statement writes the catalogs' own
//! rows anew, so that their transaction ids and oids are a mark of what is published. The mark is kept with the publication
//! itself, as its comment.

use std::collections::BTreeMap;

use postgres_protocol::escape::{escape_identifier, escape_literal};
use tokio_postgres::Client;

use super::connect::database_error;
use crate::error::Result;

/// What the comment begins with.
const OURS: &str = "Tidelock ";

/// The mark of each table, as `schema.table`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Published(BTreeMap<String, String>);

impl Published {
    /// The tables that were published otherwise before. Of those that nobody had looked at nothing is known.
    pub fn changed_since(&self, earlier: &Self) -> Vec<String> {
        let changed = earlier.0.iter().filter(|(table, mark)| self.0.get(*table) != Some(mark));
        changed.map(|(table, _)| table.clone()).collect()
    }

    /// The same without tables other than these.
    #[must_use]
    pub fn of(mut self, tables: &[(String, String)]) -> Self {
        self.0.retain(|table, _| tables.iter().any(|(schema, name)| *table == label(schema, name)));
        self
    }
}

/// A table as it is named here.
pub fn label(schema: &str, table: &str) -> String {
    format!("{schema}.{table}")
}

/// How the tables (`(schema, table)`) are published now.
pub async fn look(client: &Client, publication: &str, tables: &[(String, String)]) -> Result<Published> {
    let doing = format!("looking at the publication `{publication}`");
    let has_schemas = "SELECT pg_catalog.to_regclass('pg_catalog.pg_publication_namespace') IS NOT NULL";
    let row = client.query_one(has_schemas, &[]).await.map_err(|e| database_error(&doing, e))?;
    // Whole schemas can be published since version 15.
    let of_schema = if row.get(0) {
        "(SELECT pg_catalog.string_agg(s.oid || ':' || s.xmin, ' ' ORDER BY s.oid) FROM pg_catalog.pg_publication_namespace s \
         WHERE s.pnpubid = p.oid AND s.pnnspid = n.oid)"
    } else {
        "NULL"
    };
    let sql = format!(
        "SELECT n.nspname::text, c.relname::text, pg_catalog.concat_ws(' ', c.oid, p.oid || ':' || p.xmin, \
         (SELECT r.oid || ':' || r.xmin FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = c.oid), \
         {of_schema}) FROM pg_catalog.pg_publication p, ROWS FROM (pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[])) AS t (nspname, relname), \
         pg_catalog.pg_namespace n, pg_catalog.pg_class c \
         WHERE p.pubname = $1 AND n.nspname = t.nspname AND c.relnamespace = n.oid AND c.relname = t.relname"
    );
    let (schemas, names): (Vec<&str>, Vec<&str>) = tables.iter().map(|(s, t)| (s.as_str(), t.as_str())).unzip();
    let rows = client.query(&sql, &[&publication, &schemas, &names]).await.map_err(|e| database_error(&doing, e))?;
    Ok(Published(rows.iter().map(|row| (label(row.get(0), row.get(1)), row.get(2))).collect()))
}

/// What was remembered last; none if nothing was, or if the publication has somebody else's comment.
pub async fn remembered(client: &Client, publication: &str) -> Result<Option<Published>> {
    let doing = format!("reading the comment of the publication `{publication}`");
    let sql =
        "SELECT pg_catalog.obj_description(oid, 'pg_publication') FROM pg_catalog.pg_publication WHERE pubname = $1";
    let row = client.query_opt(sql, &[&publication]).await.map_err(|e| database_error(&doing, e))?;
    let comment = row.and_then(|row| row.get::<_, Option<String>>(0));
    Ok(comment.and_then(|text| serde_json::from_str(text.strip_prefix(OURS)?).ok()).map(Published))
}

/// Whether the role may remember anything of the publication, or could if there were one.
pub async fn can_remember(client: &Client, publication: &str) -> Result<bool> {
    let doing = format!("looking at the owner of the publication `{publication}`");
    let sql = "SELECT coalesce(pg_catalog.bool_and(pg_catalog.pg_has_role(pubowner, 'USAGE')), true) \
               FROM pg_catalog.pg_publication WHERE pubname = $1";
    let row = client.query_one(sql, &[&publication]).await.map_err(|e| database_error(&doing, e))?;
    Ok(row.get(0))
}

/// Remembers how the tables are published. Only the publication's owner may.
pub async fn remember(client: &Client, publication: &str, published: &Published) -> Result<()> {
    let text = format!("{OURS}{}", serde_json::Value::from_iter(published.0.clone()));
    let sql = format!("COMMENT ON PUBLICATION {} IS {}", escape_identifier(publication), escape_literal(&text));
    let doing = format!("writing the comment of the publication `{publication}`");
    client.batch_execute(&sql).await.map_err(|e| database_error(&doing, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::server::{PostgresServer, ServerSettings};

    #[tokio::test]
    async fn whatever_is_done_to_a_publication_shows_even_if_it_is_undone() {
        let server = PostgresServer::start(ServerSettings::default()).await.unwrap();
        server
            .execute(
                "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE SCHEMA s; \
                 CREATE TABLE s.c (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE a, b, s.c",
            )
            .await
            .unwrap();
        let session = server.session().await.unwrap();
        let tables = [("public", "a"), ("public", "b"), ("s", "c")].map(|(s, t)| (s.to_owned(), t.to_owned()));
        let mut known = look(&session, "p", &tables).await.unwrap();
        assert_eq!(remembered(&session, "p").await.unwrap(), None);
        let version: u32 = server.value("SHOW server_version_num").await.unwrap().unwrap().parse().unwrap();
        let all = ["public.a", "public.b", "s.c"].as_slice();
        for (since, statements, changed) in [
            (14, "ANALYZE; VACUUM FULL pg_publication; VACUUM FULL pg_publication_rel; VACUUM FREEZE", [].as_slice()),
            (14, "COMMENT ON PUBLICATION p IS 'nothing'; ALTER TABLE a ADD n int; CREATE TABLE d (n int)", &[]),
            (14, "ALTER PUBLICATION p ADD TABLE d; ALTER PUBLICATION p DROP TABLE d", &[]),
            (14, "ALTER PUBLICATION p DROP TABLE a; ALTER PUBLICATION p ADD TABLE a", &["public.a"]),
            (
                14,
                "ALTER PUBLICATION p SET (publish = 'insert'); ALTER PUBLICATION p SET (publish = 'insert, update')",
                all,
            ),
            (15, "ALTER PUBLICATION p SET TABLE a, b WHERE (id > 3), s.c", &["public.b"]),
            (15, "ALTER PUBLICATION p SET TABLE a (id), b WHERE (id > 3), s.c", &["public.a"]),
            (15, "ALTER PUBLICATION p SET TABLE a, b, s.c", &["public.a", "public.b"]),
            (15, "ALTER PUBLICATION p DROP TABLE s.c; ALTER PUBLICATION p ADD TABLES IN SCHEMA s", &["s.c"]),
            (14, "DROP TABLE b; CREATE TABLE b (id int PRIMARY KEY); ALTER PUBLICATION p ADD TABLE b", &["public.b"]),
            (14, "DROP PUBLICATION p; CREATE PUBLICATION p FOR ALL TABLES", all),
            (14, "DROP TABLE a; CREATE TABLE a (id int PRIMARY KEY)", &["public.a"]),
        ] {
            if version / 10_000 < since {
                continue;
            }
            // Each in a transaction of its own, since VACUUM must be.
            for statement in statements.split("; ") {
                server.execute(statement).await.unwrap();
            }
            let now = look(&session, "p", &tables).await.unwrap();
            assert_eq!(now.changed_since(&known), changed, "{statements}");
            remember(&session, "p", &now).await.unwrap();
            assert_eq!(remembered(&session, "p").await.unwrap().as_ref(), Some(&now));
            known = now;
        }
        assert_eq!(known.clone().of(&tables[..1]).0.len(), 1);
        server.execute("CREATE ROLE plain LOGIN").await.unwrap();
        let mut plain = server.endpoint();
        plain.user = "plain".into();
        let plain = crate::postgres::Session::open(&plain).await.unwrap();
        assert_eq!(look(&plain, "p", &tables).await.unwrap(), known, "anybody may look");
        assert_eq!(remember(&plain, "p", &known).await.unwrap_err().kind(), crate::error::Kind::Denied);
    }
}
