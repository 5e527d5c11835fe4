//! From what a transaction did to the change events that tell of it.
//!
//! Each row is told once (or once more for each step that asks for an event of its own), by comparing its state before
//! with its state after. The same change of several rows of one object becomes one event.

use std::collections::{BTreeMap, HashMap, HashSet};

use smol_str::SmolStr;

use super::avro::{self, ChangeType, Header, Slot};
use super::bitmap::Bitmap;
use super::diff;
use super::events::Event;
use super::schema::{Kind, Object};
use super::state::State;
use super::table::{Row, get};
use super::value::Value;
use super::write::{Actor, Step};

/// Largest payload; a larger one is told as a gap.
const MAX_PAYLOAD_BYTES: usize = 1_000_000;
/// The record id of an overflow event.
const NO_RECORD: &str = "000000000000000AAA";

/// What happened to one row.
struct Touch {
    object: usize,
    position: usize,
    before: Option<Row>,
    /// The row afterwards, where that is not how it stands now.
    after: Option<Row>,
    forced: bool,
    untold: bool,
}

/// One event before it is numbered.
struct Message {
    object: usize,
    kind: ChangeType,
    ids: Vec<SmolStr>,
    nulled: Vec<String>,
    diff: Vec<String>,
    changed: Vec<String>,
    body: Vec<u8>,
    /// Changed fields, for the overflow count.
    weight: usize,
}

/// Tells of a transaction.
pub(crate) fn tell(state: &mut State, actor: &Actor, now_ms: i64, steps: Vec<Step>) {
    state.commit_number += 1;
    if steps.is_empty() || state.plans.is_empty() {
        return;
    }
    let touches = fold(steps);
    let mut messages: Vec<Message> = Vec::with_capacity(touches.len());
    let mut same: HashMap<(usize, ChangeType, Vec<u8>), usize> = HashMap::new();
    // The newest message of each row: an event never comes before another of the same record that it follows.
    let mut newest: HashMap<(usize, usize), usize> = HashMap::new();
    for touch in &touches {
        let Some(mut message) = message(state, touch) else { continue };
        let row = (touch.object, touch.position);
        if state.settings.merge_events {
            let mut identity = message.body.clone();
            message.changed.iter().chain(&message.nulled).for_each(|e| identity.extend_from_slice(e.as_bytes()));
            let earlier = same.entry((message.object, message.kind, identity)).or_insert(messages.len());
            if *earlier < messages.len() && newest.get(&row).is_none_or(|newest| newest < earlier) {
                newest.insert(row, *earlier);
                messages[*earlier].ids.append(&mut message.ids);
                messages[*earlier].weight += message.weight;
                continue;
            }
            *earlier = messages.len();
        }
        newest.insert(row, messages.len());
        messages.push(message);
    }
    let key = state.rng.uuid();
    publish(state, actor, now_ms, &key, messages);
}

/// One touch per row, and one more for each step that is told on its own.
fn fold(steps: Vec<Step>) -> Vec<Touch> {
    let mut touches: Vec<Touch> = Vec::with_capacity(steps.len());
    let mut latest: HashMap<(usize, usize), usize> = HashMap::new();
    for step in steps {
        let place = (step.object, step.position);
        match latest.get(&place).copied() {
            Some(at) if !step.split => {
                touches[at].forced |= step.forced;
                touches[at].untold &= step.untold;
            }
            earlier => {
                if let Some(at) = earlier {
                    touches[at].after.clone_from(&step.before);
                }
                latest.insert(place, touches.len());
                touches.push(Touch {
                    object: step.object,
                    position: step.position,
                    before: step.before,
                    after: None,
                    forced: step.forced,
                    untold: step.untold,
                });
            }
        }
    }
    touches
}

fn message(state: &State, touch: &Touch) -> Option<Message> {
    let object = &state.schema.objects[touch.object];
    let after = touch.after.as_ref().or_else(|| state.tables[touch.object].row(touch.position))?;
    let plan = &state.plans[touch.object];
    let deleted = |row: &Row| object.system.deleted.and_then(|f| get(row, f)) == Some(&Value::Bool(true));
    let kind = match &touch.before {
        None if deleted(after) => return None,
        None => ChangeType::Create,
        Some(before) => match (deleted(before), deleted(after)) {
            (false, false) => ChangeType::Update,
            (false, true) => ChangeType::Delete,
            (true, false) => ChangeType::Undelete,
            (true, true) => return None,
        },
    };
    if !object.events || touch.untold {
        return None;
    }
    let id = get(after, super::schema::ID).and_then(Value::text).unwrap_or_default();
    let mut message = Message {
        object: touch.object,
        kind,
        ids: vec![id.into()],
        nulled: Vec::new(),
        diff: Vec::new(),
        changed: Vec::new(),
        body: Vec::with_capacity(256),
        weight: 1,
    };
    match (kind, &touch.before) {
        (ChangeType::Update, Some(before)) => return update(state, touch, message, before, after),
        (ChangeType::Delete, _) => avro::encode_empty_body(plan, &mut message.body),
        _ => {
            avro::encode_body(plan, |field| get(after, field), &mut message.body);
            message.weight = object.fields.len();
        }
    }
    Some(message)
}

/// The event of an update: the fields that differ, and the modification date always.
fn update(state: &State, touch: &Touch, mut message: Message, before: &Row, after: &Row) -> Option<Message> {
    let object = &state.schema.objects[touch.object];
    let plan = &state.plans[touch.object];
    let differs = |field: usize| get(before, field) != get(after, field);
    let (mut changed, mut nulled, mut diffed) = (Bitmap::default(), Bitmap::default(), Bitmap::default());
    let mut diffs: BTreeMap<usize, Value> = BTreeMap::new();
    let mut carried: HashSet<usize> = HashSet::new();
    for (slot, index) in plan.slots.iter().zip(1..) {
        match slot {
            Slot::Scalar(field) if differs(*field) || *field == object.system.modified_date => {
                changed.add(index);
                carried.insert(*field);
                match get(after, *field) {
                    None => nulled.add(index),
                    Some(value) => {
                        if let Some(text) = long_text_diff(state, object, *field, before, value) {
                            diffed.add(index);
                            diffs.insert(*field, text);
                        }
                    }
                }
            }
            Slot::Scalar(_) => {}
            Slot::Compound(parts) => {
                for (member, part) in parts.iter().enumerate() {
                    let Some(field) = part.field.filter(|field| differs(*field)) else { continue };
                    changed.add_member(index, member);
                    carried.insert(field);
                    if get(after, field).is_none() {
                        nulled.add_member(index, member);
                    }
                }
            }
        }
    }
    if !touch.forced && !carried.iter().any(|field| tells(object, *field)) {
        return None;
    }
    let value = |field: usize| {
        if carried.contains(&field) { diffs.get(&field).or_else(|| get(after, field)) } else { None }
    };
    avro::encode_body(plan, value, &mut message.body);
    message.weight = carried.len();
    (message.changed, message.nulled, message.diff) = (changed.elements(), nulled.elements(), diffed.elements());
    Some(message)
}

/// Whether a change of `field` is a reason for an event; the stamps alone are not.
fn tells(object: &Object, field: usize) -> bool {
    field != object.system.modified_date && field != object.system.modified_by
}

fn long_text_diff(state: &State, object: &Object, field: usize, before: &Row, after: &Value) -> Option<Value> {
    if !state.settings.diff_fields || object.fields[field].kind != Kind::TextArea {
        return None;
    }
    let text = diff::unified(get(before, field)?.text()?, after.text()?)?;
    Some(Value::Text(text.into()))
}

/// Numbers the messages and puts them into the log.
fn publish(state: &mut State, actor: &Actor, now_ms: i64, key: &str, messages: Vec<Message>) {
    let mut sequence = 0;
    let mut weight = 0;
    let mut overflown: HashSet<usize> = HashSet::new();
    for mut message in messages {
        weight += message.weight;
        sequence += 1;
        if weight > state.settings.overflow_changes {
            if !overflown.insert(message.object) {
                continue;
            }
            message.kind = ChangeType::GapOverflow;
            message.ids = vec![NO_RECORD.into()];
        } else if state.faults.gap_next > 0 {
            state.faults.gap_next -= 1;
            message.kind = message.kind.as_gap();
        }
        append(state, actor, now_ms, key, sequence, message);
    }
}

fn append(state: &mut State, actor: &Actor, now_ms: i64, key: &str, sequence: i64, message: Message) {
    let mut payload = encode(state, actor, now_ms, key, sequence, &message);
    if payload.len() > MAX_PAYLOAD_BYTES {
        payload = encode(state, actor, now_ms, key, sequence, &Message { kind: message.kind.as_gap(), ..message });
        append_payload(state, now_ms, message.object, payload);
        return;
    }
    append_payload(state, now_ms, message.object, payload);
}

fn append_payload(state: &mut State, now_ms: i64, object: usize, payload: Vec<u8>) {
    let uuid = state.rng.uuid();
    let schema_id = state.plans[object].schema_id.clone();
    let event = Event { number: 0, at_ms: now_ms, object, uuid: uuid.into(), schema_id, payload: payload.into() };
    let twice = state.rng.chance(state.faults.duplicate_events);
    // Numbers are not contiguous, so that nobody counts on it.
    let step = 1 + state.rng.below(3);
    if twice {
        state.log.append(1, event.clone());
    }
    state.log.append(step, event);
}

fn encode(state: &State, actor: &Actor, now_ms: i64, key: &str, sequence: i64, message: &Message) -> Vec<u8> {
    let ids: Vec<&str> = message.ids.iter().map(SmolStr::as_str).collect();
    let gap = matches!(
        message.kind,
        ChangeType::GapCreate
            | ChangeType::GapUpdate
            | ChangeType::GapDelete
            | ChangeType::GapUndelete
            | ChangeType::GapOverflow
    );
    let lists: [&[String]; 3] = if gap { [&[], &[], &[]] } else { [&message.nulled, &message.diff, &message.changed] };
    let header = Header {
        entity: &state.schema.objects[message.object].name,
        record_ids: &ids,
        change_type: message.kind,
        change_origin: &actor.origin,
        transaction_key: key,
        sequence_number: sequence,
        commit_timestamp_ms: now_ms,
        commit_number: state.commit_number,
        commit_user: &actor.user,
        nulled: lists[0],
        diff: lists[1],
        changed: lists[2],
    };
    let mut payload = Vec::with_capacity(256 + message.body.len());
    avro::encode_header(&header, &mut payload);
    if gap {
        avro::encode_empty_body(&state.plans[message.object], &mut payload);
    } else {
        payload.extend_from_slice(&message.body);
    }
    payload
}

/// Tells of `ids` of `object` without values: a gap, an overflow, or a wildcard such as `001*`.
pub(crate) fn tell_gap(
    state: &mut State,
    actor: &Actor,
    now_ms: i64,
    object: usize,
    kind: ChangeType,
    ids: Vec<SmolStr>,
) {
    let now_ms = now_ms.div_euclid(1000) * 1000;
    state.commit_number += 1;
    let key = state.rng.uuid();
    let message = Message {
        object,
        kind,
        ids: if kind == ChangeType::GapOverflow { vec![NO_RECORD.into()] } else { ids },
        nulled: Vec::new(),
        diff: Vec::new(),
        changed: Vec::new(),
        body: Vec::new(),
        weight: 1,
    };
    append(state, actor, now_ms, &key, 1, message);
}
