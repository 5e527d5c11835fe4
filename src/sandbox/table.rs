//! The rows of one object with the indexes that keep writes from scanning: by id, by unique value, by parent.
//!
//! A row is never moved; a deleted row stays (it is in the recycle bin) and leaves the unique indexes. All writes go
//! through [`Table::insert`] and [`Table::replace`], which keep the indexes true.

use std::collections::{BTreeSet, HashMap};

use smallvec::SmallVec;
use smol_str::SmolStr;

use super::id;
use super::schema::{ID, Object};
use super::value::Value;

/// A row's values by field index. Fields that were added later may be beyond its end, and are null.
pub(crate) type Row = Vec<Option<Value>>;

/// The value of `field` in `row`.
pub(crate) fn get(row: &Row, field: usize) -> Option<&Value> {
    row.get(field).and_then(Option::as_ref)
}

/// Sets the value of `field` in `row`.
pub(crate) fn put(row: &mut Row, field: usize, value: Option<Value>) {
    if row.len() <= field {
        row.resize(field + 1, None);
    }
    row[field] = value;
}

/// The rows of one object.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
    by_id: HashMap<SmolStr, usize>,
    lookups: HashMap<usize, HashMap<SmolStr, SmallVec<[usize; 1]>>>,
    parents: HashMap<usize, HashMap<SmolStr, BTreeSet<usize>>>,
    deleted_field: Option<usize>,
    alive: usize,
    next_id: u64,
    next_number: u64,
}

/// Where the sequence of record ids begins, so that ids have letters of both cases.
const FIRST_ID: u64 = 20_000_000;

impl Table {
    /// An empty table for `object`.
    pub(crate) fn new(object: &Object) -> Self {
        let mut table = Self { next_id: FIRST_ID, next_number: 1000, ..Self::default() };
        table.prepare(object);
        table
    }

    /// Makes the indexes fit the object's fields. Called again when the fields have changed.
    pub(crate) fn prepare(&mut self, object: &Object) {
        self.deleted_field = object.system.deleted;
        self.lookups.clear();
        self.parents.clear();
        for (index, field) in object.fields.iter().enumerate() {
            if field.unique || field.id_lookup && index != ID {
                self.lookups.insert(index, HashMap::new());
            }
            if field.reference_to.iter().any(|target| target != "User") {
                self.parents.insert(index, HashMap::new());
            }
        }
        let rows = std::mem::take(&mut self.rows);
        self.alive = 0;
        for (position, row) in rows.iter().enumerate() {
            self.enter(position, row);
        }
        self.rows = rows;
    }

    /// A new record id.
    pub(crate) fn new_id(&mut self, prefix: &str) -> SmolStr {
        self.next_id += 1;
        id::make(prefix, self.next_id)
    }

    /// The next number of an auto-number field.
    pub(crate) fn new_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// How many rows there are, the deleted included.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// How many rows are not deleted.
    pub(crate) fn alive(&self) -> usize {
        self.alive
    }

    /// The row at `position`.
    pub(crate) fn row(&self, position: usize) -> Option<&Row> {
        self.rows.get(position)
    }

    /// The position of the row with this 18-character id.
    pub(crate) fn find(&self, id: &str) -> Option<usize> {
        self.by_id.get(id).copied()
    }

    /// Whether the row at `position` is in the recycle bin.
    pub(crate) fn is_deleted(&self, position: usize) -> bool {
        self.rows.get(position).is_none_or(|row| self.deleted(row))
    }

    fn deleted(&self, row: &Row) -> bool {
        self.deleted_field.and_then(|field| get(row, field)) == Some(&Value::Bool(true))
    }

    /// The rows, not deleted, whose indexed field `field` has the value whose key is `key`; `None` without an index.
    pub(crate) fn lookup(&self, field: usize, key: &str) -> Option<&[usize]> {
        self.lookups.get(&field).map(|index| index.get(key).map_or(&[][..], SmallVec::as_slice))
    }

    /// The rows, not deleted, that refer to `parent` by `field`; `None` without an index.
    pub(crate) fn children(&self, field: usize, parent: &str) -> Option<Vec<usize>> {
        self.parents
            .get(&field)
            .map(|index| index.get(parent).map(|rows| rows.iter().copied().collect()).unwrap_or_default())
    }

    /// Adds a row and gives its position.
    pub(crate) fn insert(&mut self, row: Row) -> usize {
        let position = self.rows.len();
        if let Some(id) = get(&row, ID).and_then(Value::text) {
            self.by_id.insert(id.into(), position);
        }
        self.enter(position, &row);
        self.rows.push(row);
        position
    }

    /// Puts `row` in the place of the one at `position` and gives back what was there.
    pub(crate) fn replace(&mut self, position: usize, row: Row) -> Row {
        let Some(slot) = self.rows.get_mut(position) else { return Row::new() };
        let old = std::mem::take(slot);
        self.leave(position, &old);
        self.enter(position, &row);
        if let Some(slot) = self.rows.get_mut(position) {
            *slot = row;
        }
        old
    }

    /// Takes the last row away again, as if it had never been.
    pub(crate) fn pop(&mut self) {
        let Some(row) = self.rows.pop() else { return };
        self.leave(self.rows.len(), &row);
        if let Some(id) = get(&row, ID).and_then(Value::text) {
            self.by_id.remove(id);
        }
    }

    fn enter(&mut self, position: usize, row: &Row) {
        if let Some(id) = get(row, ID).and_then(Value::text)
            && !self.by_id.contains_key(id)
        {
            self.by_id.insert(id.into(), position);
        }
        if self.deleted(row) {
            return;
        }
        self.alive += 1;
        for (field, index) in &mut self.lookups {
            if let Some(value) = get(row, *field) {
                index.entry(key(value)).or_default().push(position);
            }
        }
        for (field, index) in &mut self.parents {
            if let Some(parent) = get(row, *field).and_then(Value::text) {
                index.entry(parent.into()).or_default().insert(position);
            }
        }
    }

    fn leave(&mut self, position: usize, row: &Row) {
        if self.deleted(row) {
            return;
        }
        self.alive -= 1;
        for (field, index) in &mut self.lookups {
            let Some(value) = get(row, *field) else { continue };
            let key = key(value);
            if let Some(rows) = index.get_mut(&key) {
                rows.retain(|r| *r != position);
                if rows.is_empty() {
                    index.remove(&key);
                }
            }
        }
        for (field, index) in &mut self.parents {
            let Some(parent) = get(row, *field).and_then(Value::text) else { continue };
            if let Some(rows) = index.get_mut(parent) {
                rows.remove(&position);
                if rows.is_empty() {
                    index.remove(parent);
                }
            }
        }
    }
}

/// The key that a value has in an index: text without regard to case. Fields that tell the cases apart are compared
/// again by whoever looks something up.
pub(crate) fn key(value: &Value) -> SmolStr {
    match value {
        Value::Text(text) => text.to_lowercase().into(),
        Value::Double(n) => n.to_string().into(),
        other => other.plain().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::standard;
    use super::*;

    #[test]
    fn indexes_follow_the_rows() {
        let object = &standard::objects()[0];
        let mut table = Table::new(object);
        let (name, external) = (object.field("Name").unwrap(), object.field("External_ID__c").unwrap());
        let parent = object.field("ParentId").unwrap();
        let mut row = Row::new();
        let id = table.new_id("001");
        put(&mut row, ID, Some(Value::Text(id.clone())));
        put(&mut row, name, Some(Value::Text("A".into())));
        put(&mut row, external, Some(Value::Text("Key-1".into())));
        put(&mut row, parent, Some(Value::Text("001000000000001AAA".into())));
        let at = table.insert(row.clone());
        assert_eq!(table.find(&id), Some(at));
        assert_eq!(table.lookup(external, "key-1"), Some(&[at][..]));
        assert_eq!(table.children(parent, "001000000000001AAA"), Some(vec![at]));
        assert_eq!(table.lookup(name, "a"), None);
        put(&mut row, external, Some(Value::Text("Key-2".into())));
        let old = table.replace(at, row.clone());
        assert_eq!(table.lookup(external, "key-1"), Some(&[][..]));
        assert_eq!(get(&old, external).and_then(Value::text), Some("Key-1"));
        put(&mut row, object.system.deleted.unwrap(), Some(Value::Bool(true)));
        table.replace(at, row);
        assert_eq!((table.alive(), table.len()), (0, 1));
        assert_eq!(table.lookup(external, "key-2"), Some(&[][..]));
        table.replace(at, old);
        table.prepare(object);
        assert_eq!((table.lookup(external, "key-1"), table.alive()), (Some(&[at][..]), 1));
        table.pop();
        assert_eq!((table.find(&id), table.alive(), table.len()), (None, 0, 0));
    }
}
