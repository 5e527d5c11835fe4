//! Tables whose publication somebody has changed: what was done meanwhile may be missing from the stream, so they are read again.

use crate::change::{MappingDef, MappingId, Notice, Side, Str};
use crate::error::{Kind, Result};
use crate::ledger::Ledger;
use crate::postgres::publication::{self, Published};
use crate::postgres::{Endpoint, Session};

use super::stream::doubt_rows;

/// What was found at a start.
pub(super) struct Republished {
    /// Tables, as `schema.table`, that are published otherwise than when this link last looked.
    changed: Vec<String>,
    now: Published,
}

impl Republished {
    /// Looks before anything is put right. `seen` says that the run before has seen a change, and `read_before` that the stream has
    /// been read: then what nobody remembers, though it could be, may have been anything.
    pub(super) async fn look(
        session: &Session,
        publication: &str,
        tables: &[(String, String)],
        seen: bool,
        read_before: bool,
    ) -> Result<Self> {
        let all = || tables.iter().map(|(schema, table)| publication::label(schema, table)).collect();
        let now = publication::look(session, publication, tables).await?;
        let changed = match publication::remembered(session, publication).await? {
            Some(known) => now.changed_since(&known.of(tables)),
            None if read_before && publication::can_remember(session, publication).await? => all(),
            None => Vec::new(),
        };
        Ok(Self { changed: if seen && changed.is_empty() { all() } else { changed }, now })
    }

    /// The same, with what is remembered then: how it is when everything is put right.
    pub(super) async fn now(self, session: &Session, publication: &str, tables: &[(String, String)]) -> Result<Self> {
        Ok(Self { now: publication::look(session, publication, tables).await?, ..self })
    }

    /// Has the tables read again, and only then remembers how they are published; returns that.
    pub(super) async fn settle(self, ledger: &Ledger, endpoint: &Endpoint, publication: &str) -> Result<Published> {
        let Self { changed, now } = self;
        if !changed.is_empty() {
            doubt(ledger, publication, changed).await?;
        }
        let session = Session::brief(endpoint).await?;
        match publication::remember(&session, publication, &now).await {
            Ok(()) => {}
            Err(error) if error.kind() == Kind::Denied => {
                tracing::warn!(
                    error = %error.explain(),
                    "how the publication is set up cannot be remembered, since the role does not own it: a change of it is noticed \
                     while the link runs, and not what happens while it is stopped"
                );
            }
            Err(error) => return Err(error),
        }
        session.close().await?;
        Ok(now)
    }
}

/// Has the rows of these tables, as `schema.table`, compared with the log.
pub(super) async fn doubt(ledger: &Ledger, publication: &str, changed: Vec<String>) -> Result<()> {
    let tables = changed.join(", ");
    tracing::error!(
        publication,
        tables,
        "somebody has changed what the publication publishes; what was done meanwhile may be missing from the stream, so \
         every row of these tables is read again"
    );
    let reason = Str::new_static("the publication was changed by somebody else");
    ledger
        .run(move |core| {
            let side = Side::Postgres;
            core.notice(Notice::Gap { side, reason: reason.clone(), scope: Str::from(tables) })?;
            let mappings = &core.meta().catalog.mappings;
            let is_changed = |m: &&MappingDef| changed.contains(&publication::label(&m.schema, &m.table));
            let changed: Vec<MappingId> = mappings.iter().filter(is_changed).map(|m| m.id).collect();
            changed.into_iter().try_for_each(|mapping| doubt_rows(core, side, mapping, &reason, None, None))
        })
        .await
}
