//! From rows to calls: as few as the limits allow, without letting a row pass another that it may depend on.
//!
//! Rows of one verb and object gather in one segment. A row may join a segment before later ones only if it passes nothing
//! there that it could depend on: a parent that is to be written first, a child that is to be deleted first, or a row of its own
//! object that sets a unique value free. Neighbouring segments of updates, and of deletes, then share a call.

use std::collections::BTreeSet;

use super::row::{Row, Verb};

/// The most records in one collection call.
pub(super) const ROWS_MAX: usize = 200;

/// The most runs of records of one object in one collection call.
const SEGMENTS_MAX: usize = 10;

/// About how large one request's body may become. Far below what Salesforce takes; a call of this size is slow already.
const BYTES_MAX: usize = 4 * 1024 * 1024;

/// The rows of one request, all of one verb.
pub(super) type Call = Vec<Row>;

#[derive(Debug)]
struct Segment {
    rows: Vec<Row>,
    names: BTreeSet<String>,
    bytes: usize,
}

impl Segment {
    fn of(row: Row) -> Self {
        let mut segment = Self { rows: Vec::new(), names: BTreeSet::new(), bytes: 0 };
        segment.push(row);
        segment
    }

    fn push(&mut self, row: Row) {
        self.bytes += row.size();
        if !row.name.is_empty() {
            self.names.insert(row.name.clone());
        }
        self.rows.push(row);
    }

    fn gathers(&self, row: &Row) -> bool {
        self.rows.first().is_some_and(|first| {
            (first.verb, &first.sobject, &first.external_field) == (row.verb, &row.sobject, &row.external_field)
        })
    }

    fn has_room(&self, row: &Row, rows_max: usize) -> bool {
        self.rows.len() < rows_max && self.bytes + row.size() <= BYTES_MAX && !self.names.contains(&row.name)
    }

    /// Whether `row` may go before all of this segment although it comes after.
    fn may_be_passed_by(&self, row: &Row) -> bool {
        let Some(first) = self.rows.first() else { return true };
        let makes = |verb| matches!(verb, Verb::Upsert | Verb::Insert);
        match (row.verb, first.verb) {
            (Verb::Delete, Verb::Delete) => first.rank <= row.rank && first.sobject != row.sobject,
            (Verb::Delete, _) | (_, Verb::Delete) => false,
            // A record that is being made frees no value, and nothing knows its id yet.
            (Verb::Update, verb) if makes(verb) && first.sobject == row.sobject => true,
            _ => first.sobject != row.sobject && first.rank >= row.rank,
        }
    }
}

/// Divides rows into calls, to be sent in order.
pub(super) fn plan(rows: Vec<Row>, rows_max: usize) -> Vec<Call> {
    let rows_max = rows_max.clamp(1, ROWS_MAX);
    let mut segments: Vec<Segment> = Vec::new();
    for row in rows {
        // The newest segment that gathers such rows, if nothing after it stands in the way.
        let newest = segments.iter().rposition(|segment| segment.gathers(&row));
        let open = newest.filter(|at| {
            segments.get(at + 1..).unwrap_or_default().iter().all(|later| later.may_be_passed_by(&row))
                && segments.get(*at).is_some_and(|segment| segment.has_room(&row, rows_max))
        });
        match open.and_then(|at| segments.get_mut(at)) {
            Some(segment) => segment.push(row),
            None => segments.push(Segment::of(row)),
        }
    }
    share_calls(segments, rows_max)
}

fn share_calls(segments: Vec<Segment>, rows_max: usize) -> Vec<Call> {
    let mut calls: Vec<(Segment, usize)> = Vec::new();
    for segment in segments {
        let joined = calls.last_mut().filter(|(call, count)| {
            let verb = |s: &Segment| s.rows.first().map(|row| row.verb);
            verb(call) == verb(&segment)
                && matches!(verb(call), Some(Verb::Update | Verb::Delete))
                && *count < SEGMENTS_MAX
                && call.rows.len() + segment.rows.len() <= rows_max
                && call.bytes + segment.bytes <= BYTES_MAX
                && call.names.is_disjoint(&segment.names)
        });
        match joined {
            Some((call, count)) => {
                *count += 1;
                segment.rows.into_iter().for_each(|row| call.push(row));
            }
            None => calls.push((segment, 1)),
        }
    }
    calls.into_iter().map(|(call, _)| call.rows).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value as Json};

    use super::*;
    use crate::change::Offset;

    fn row(index: usize, verb: Verb, sobject: &str, rank: u16, name: &str) -> Row {
        let id = matches!(verb, Verb::Update | Verb::Delete).then(|| name.into());
        let mut body = Map::new();
        body.insert("Name".into(), Json::from("x"));
        Row {
            index,
            ticket: Offset(index as u64),
            verb,
            sobject: sobject.into(),
            external_field: "Key__c".into(),
            rank,
            id,
            name: name.into(),
            body,
            left_out: Vec::new(),
            create_only: Vec::new(),
            clears: false,
        }
    }

    /// Plans `rows` given as (verb, object, rank), named by their place; answers the places in each call.
    fn planned(rows: &[(Verb, &str, u16)], rows_max: usize) -> Vec<Vec<usize>> {
        let rows = rows
            .iter()
            .enumerate()
            .map(|(n, (verb, sobject, rank))| row(n, *verb, sobject, *rank, &format!("n{n}")))
            .collect();
        plan(rows, rows_max).iter().map(|call| call.iter().map(|row| row.index).collect()).collect()
    }

    const U: Verb = Verb::Update;
    const C: Verb = Verb::Upsert;
    const D: Verb = Verb::Delete;

    #[test]
    fn rows_of_one_kind_and_object_gather_and_parents_stay_first() {
        assert_eq!(planned(&[(C, "A", 0), (C, "B", 1), (C, "A", 0), (C, "B", 1)], 200), [[0, 2], [1, 3]]);
        assert_eq!(planned(&[(C, "B", 1), (C, "A", 0), (C, "B", 1)], 200), [vec![0], vec![1], vec![2]]);
        assert_eq!(planned(&[(C, "A", 0), (U, "B", 1), (C, "A", 0)], 200), [vec![0, 2], vec![1]]);
    }

    #[test]
    fn updates_of_several_objects_share_a_call() {
        assert_eq!(planned(&[(U, "A", 0), (U, "B", 1), (U, "A", 0)], 200), [[0, 2, 1]]);
        let many: Vec<String> = (0..11).map(|n| format!("O{n}")).collect();
        let rows: Vec<_> = many.iter().map(|name| (U, name.as_str(), 0)).collect();
        assert_eq!(planned(&rows, 200).iter().map(Vec::len).collect::<Vec<_>>(), [10, 1]);
    }

    #[test]
    fn a_create_never_passes_an_update_or_delete_that_may_free_its_value() {
        assert_eq!(planned(&[(C, "A", 0), (U, "A", 0), (C, "A", 0), (U, "A", 0)], 200), [vec![0], vec![1, 3], vec![2]]);
        assert_eq!(planned(&[(C, "A", 0), (D, "A", 0), (C, "A", 0)], 200), [vec![0], vec![1], vec![2]]);
        assert_eq!(planned(&[(U, "A", 0), (D, "B", 0), (U, "A", 0)], 200), [vec![0], vec![1], vec![2]]);
    }

    #[test]
    fn children_are_deleted_before_their_parents() {
        assert_eq!(planned(&[(D, "B", 1), (D, "A", 0), (D, "B", 1)], 200), [[0, 2, 1]]);
        assert_eq!(planned(&[(D, "A", 0), (D, "B", 1), (D, "A", 0)], 200), [[0, 1, 2]]);
    }

    #[test]
    fn calls_are_bounded_by_rows_and_bytes() {
        let rows = vec![(C, "A", 0); 450];
        assert_eq!(planned(&rows, 1000).iter().map(Vec::len).collect::<Vec<_>>(), [200, 200, 50]);
        assert_eq!(planned(&rows, 0).len(), 450);
        let wide = |n| {
            let mut row = row(n, C, "A", 0, &format!("n{n}"));
            row.body.insert("Long__c".into(), Json::from("x".repeat(1_500_000)));
            row
        };
        assert_eq!(plan((0..5).map(wide).collect(), 200).iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
    }

    #[test]
    fn the_same_record_is_never_in_a_call_twice() {
        let rows = vec![row(0, C, "A", 0, "k"), row(1, C, "A", 0, "k"), row(2, C, "A", 0, "j")];
        let calls = plan(rows, 200);
        assert_eq!(calls.len(), 2);
        let rows = vec![row(0, U, "A", 0, "k"), row(1, U, "B", 0, "k")];
        assert_eq!(plan(rows, 200).len(), 2);
        // Without a name there is nothing to collide.
        let rows = vec![row(0, Verb::Insert, "A", 0, ""), row(1, Verb::Insert, "A", 0, "")];
        assert_eq!(plan(rows, 200).len(), 1);
    }
}
