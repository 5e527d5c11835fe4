//! An entry in words and names, for people and programs.

use serde::Serialize;

use crate::change::{
    Body, Catalog, ChangeOrigin, Decision, Entry, MappingId, Notice, Offset, Operation, RecordId, Ruling, Side, Source,
    Str, Subject, Value, Who, WriteKind, WriteResult,
};

/// One field of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldLine {
    /// The sObject field's name.
    pub field: Str,
    /// The value before, as the side held it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Value>,
    /// The value after, or the one that is written.
    pub to: Value,
}

/// An entry in words and names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Described {
    /// Its place in the log.
    pub offset: Offset,
    /// When the log took it, ISO 8601 in UTC.
    pub at: String,
    /// What kind of entry it is.
    pub kind: &'static str,
    /// What it says, in a few words.
    pub what: String,
    /// The mapping's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mapping: Option<Str>,
    /// The record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<RecordId>,
    /// The side it comes from or goes to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub side: Option<Side>,
    /// Who did it: the person, role, application or rule.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub who: String,
    /// When the side committed it, ISO 8601 in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub committed_at: Option<String>,
    /// The place in the side's stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
    /// The side's transaction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transaction: Option<Str>,
    /// The change's own name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dot: Option<String>,
    /// What its author had seen, or what a write includes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vector: Option<String>,
    /// The fields.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<FieldLine>,
}

fn time(micros: i64) -> String {
    Value::Timestamp(micros).to_string()
}

/// Puts an entry into words, with the names of `catalog`.
pub fn describe(catalog: &Catalog, offset: Offset, entry: &Entry) -> Described {
    let mut said = Described {
        offset,
        at: time(entry.recorded_at),
        kind: "",
        what: String::new(),
        mapping: None,
        record: None,
        side: None,
        who: String::new(),
        committed_at: None,
        position: None,
        transaction: None,
        dot: None,
        vector: None,
        fields: Vec::new(),
    };
    match &entry.body {
        Body::Change(change) => {
            said.about("change", catalog, change.mapping, change.record);
            said.source(&change.source);
            said.what = format!("{}{}", operation(change.operation), origin(change.origin));
            said.dot = Some(change.dot.to_string());
            said.vector = Some(change.vector.to_string());
            said.fields = change
                .fields
                .iter()
                .map(|f| FieldLine {
                    field: catalog.field_name(change.mapping, f.field),
                    from: Some(f.before.clone()),
                    to: f.after.clone(),
                })
                .collect();
        }
        Body::Echo(echo) => {
            said.about("echo", catalog, echo.mapping, echo.record);
            said.source(&echo.source);
            said.who = String::new();
            said.what = format!("our write {} came back", echo.ticket);
        }
        Body::Ticket(ticket) => {
            said.about("ticket", catalog, ticket.mapping, ticket.record);
            said.side = Some(ticket.side);
            said.what = format!("{} at {}", write(ticket.write), ticket.side);
            said.vector = Some(ticket.vector.to_string());
            said.fields = ticket
                .values
                .iter()
                .map(|v| FieldLine {
                    field: catalog.field_name(ticket.mapping, v.field),
                    from: None,
                    to: v.value.clone(),
                })
                .collect();
        }
        Body::Outcome(outcome) => {
            said.about("outcome", catalog, outcome.mapping, outcome.record);
            said.side = Some(outcome.side);
            said.what = result(outcome.ticket, &outcome.result);
            if let WriteResult::Retried { by } | WriteResult::GivenUp { by } = &outcome.result {
                said.who = by.to_string();
            }
        }
        Body::Decision(decision) => {
            said.about("decision", catalog, decision.mapping, decision.record);
            said.what = verdict(catalog, decision);
            // While it waits, nobody has decided.
            if decision.ruling != Ruling::Parked {
                said.who = ruling(&decision.ruling);
            }
        }
        Body::Bind(bind) => {
            said.about("bind", catalog, bind.mapping, bind.record);
            let ids = [
                bind.key.as_ref().map(|k| format!("key {k}")),
                bind.salesforce_id.as_ref().map(|id| format!("Salesforce id {id}")),
            ];
            said.what = ids.into_iter().flatten().collect::<Vec<_>>().join(", ");
        }
        Body::Notice(notice) => {
            said.kind = "notice";
            said.what = notice_text(catalog, notice);
        }
    }
    said
}

impl Described {
    fn about(&mut self, kind: &'static str, catalog: &Catalog, mapping: MappingId, record: RecordId) {
        self.kind = kind;
        self.mapping = Some(catalog.mapping(mapping).map_or_else(Str::default, |m| Str::new(&m.name)));
        self.record = Some(record);
    }

    fn source(&mut self, source: &Source) {
        self.side = Some(source.side);
        self.committed_at = Some(time(source.committed_at));
        self.position = Some(source.position.to_string());
        self.transaction = Some(source.transaction.id.clone()).filter(|id| !id.is_empty());
        self.who = who(&source.who);
    }
}

/// Who made a change, in one line.
pub(super) fn who(who: &Who) -> String {
    let mut parts = Vec::new();
    if !who.user.is_empty() {
        parts.push(who.user.to_string());
    }
    if !who.role.is_empty() {
        parts.push(format!("role {}", who.role));
    }
    if !who.application.is_empty() {
        parts.push(format!("via {}", who.application));
    }
    parts.join(", ")
}

fn operation(operation: Operation) -> &'static str {
    match operation {
        Operation::Insert => "insert",
        Operation::Update => "update",
        Operation::Delete => "delete",
        Operation::Undelete => "undelete",
    }
}

fn origin(origin: ChangeOrigin) -> &'static str {
    match origin {
        ChangeOrigin::Captured => "",
        ChangeOrigin::Automation => " by the side's own automation",
        ChangeOrigin::Backfill => ", copied when the sides were joined",
        ChangeOrigin::Repair => ", read again",
        ChangeOrigin::Rewound => ", as the side went back",
    }
}

fn write(write: WriteKind) -> &'static str {
    match write {
        WriteKind::Create => "create",
        WriteKind::Update => "update",
        WriteKind::Delete => "delete",
    }
}

fn result(ticket: Offset, result: &WriteResult) -> String {
    match result {
        WriteResult::Done => format!("write {ticket} acknowledged"),
        WriteResult::Silent => {
            format!("write {ticket} is over: its values were there already, or what became of them was read")
        }
        WriteResult::Skipped => format!("write {ticket} skipped: the side holds an edit that is still to be decided"),
        WriteResult::Abandoned { reason } => format!("write {ticket} did not take effect: {reason}"),
        WriteResult::Refused { code, message } => format!("write {ticket} refused: {code}: {message}"),
        WriteResult::Retried { .. } => format!("dead letter {ticket} is tried again"),
        WriteResult::GivenUp { .. } => format!("dead letter {ticket} discarded"),
    }
}

/// Who or what decided, in a few words.
pub(super) fn ruling(ruling: &Ruling) -> String {
    match ruling {
        Ruling::Policy { policy } => format!("policy {}", policy.name()),
        Ruling::DeletePolicy { policy } => match policy {
            crate::change::DeletePolicy::DeleteWins => "policy delete_wins".into(),
            crate::change::DeletePolicy::UpdateWins => "policy update_wins".into(),
        },
        Ruling::LaterOfSameSide => "the side's later edit stands".into(),
        Ruling::InitialMerge => "initial merge".into(),
        Ruling::Owner { .. } => "the owner".into(),
        Ruling::Parked => "waits for a person".into(),
        Ruling::Agreed => "both sides agree".into(),
        Ruling::Person { name } => name.to_string(),
    }
}

/// A decision's subject for people: a field's name, or the record itself.
pub(super) fn subject(catalog: &Catalog, decision: &Decision) -> Str {
    match decision.subject {
        Subject::Field(field) => catalog.field_name(decision.mapping, field),
        Subject::Existence => Str::new_static("(record)"),
    }
}

/// A value of a decision: the existence in words.
pub(super) fn shown(decision: &Decision, value: &Value) -> String {
    match (decision.subject, value) {
        (Subject::Existence, Value::Bool(true)) => "kept".into(),
        (Subject::Existence, Value::Bool(false)) => "deleted".into(),
        _ => value.to_string(),
    }
}

fn verdict(catalog: &Catalog, decision: &Decision) -> String {
    let (subject, kind) = (subject(catalog, decision), decision.conflict.name());
    let (stands, lost) = (shown(decision, &decision.winner), shown(decision, &decision.loser));
    match decision.ruling {
        Ruling::Parked => format!("{kind} in {subject}: {stands} or {lost} waits for a person"),
        _ => format!("{kind} in {subject}: {stands} stands, {lost} does not"),
    }
}

fn notice_text(catalog: &Catalog, notice: &Notice) -> String {
    let mapping = |id: MappingId| catalog.mapping(id).map_or_else(|| format!("mapping {}", id.0), |m| m.name.clone());
    match notice {
        Notice::Configured { catalog } => format!("configuration with {} mappings in force", catalog.mappings.len()),
        Notice::StreamOpened { side, identity, .. } => format!("{side} stream opened: {identity}"),
        Notice::StreamAt { side, position } => format!("{side} stream read up to {position}"),
        Notice::ReplayAt { side, cursor } => format!("replay to {side} has read up to {cursor}"),
        Notice::Backfill { side, mapping: id, rows, finished, .. } => {
            format!("copying {} from {side}: {rows} rows{}", mapping(*id), if *finished { ", complete" } else { "" })
        }
        Notice::ClockOffset { salesforce_ahead_us } => {
            format!("Salesforce's clock is {} ms ahead", salesforce_ahead_us / 1_000)
        }
        Notice::Reconcile { side, mapping: id, cause, .. } => {
            format!("comparing {} at {side} with the log: {cause}", mapping(*id))
        }
        Notice::Gap { side, reason, scope } => {
            format!("{side} could not tell everything ({reason}); reading {scope} again")
        }
    }
}
