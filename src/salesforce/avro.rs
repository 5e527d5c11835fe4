//! Change events: bare Avro, decoded with the very schema that each event names.
//!
//! The schema is parsed once ([`EventSchema::parse`]) and compiled to a small tree of [`Node`]s; an event is then one walk
//! over its bytes that builds only what is asked for and steps over the rest. Every length and index is checked against the
//! bytes that are there, so hostile input is an [`AvroError`] and never a panic or a large allocation.

use std::collections::BTreeMap;
use std::sync::Arc;

use apache_avro::Schema;
use apache_avro::types::Value;

/// The most items of an array or map that are read: more than the bytes of any event could hold.
const ITEMS_MAX: usize = 1 << 20;

/// Why a schema or an event cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AvroError {
    /// The schema is not Avro, or uses something that is not supported.
    #[error("the schema cannot be read: {0}")]
    Schema(String),
    /// The record is not a change event.
    #[error("the schema {0:?} has no ChangeEventHeader as its first field, so it is not a change event")]
    NotAChangeEvent(String),
    /// The event ends inside an item.
    #[error("the event ends early, at byte {0}")]
    Short(usize),
    /// A number is longer than 64 bits.
    #[error("a number at byte {0} is too long")]
    Number(usize),
    /// A length, index or count makes no sense.
    #[error("a {what} at byte {at} is {value}")]
    Invalid {
        /// What was read.
        what: &'static str,
        /// Its value.
        value: i64,
        /// Where.
        at: usize,
    },
    /// Text is not UTF-8.
    #[error("a text at byte {0} is not UTF-8")]
    Text(usize),
    /// The header lacks a field, or it is of another type.
    #[error("the event's header has no {0}")]
    Header(&'static str),
    /// Bytes are left over.
    #[error("{0} bytes are left over after the event")]
    TooLong(usize),
}

/// What a value looks like in bytes.
#[derive(Debug, Clone)]
pub enum Node {
    /// Nothing.
    Null,
    /// One byte.
    Boolean,
    /// A varint of 32 bits.
    Int,
    /// A varint of 64 bits.
    Long,
    /// Four bytes.
    Float,
    /// Eight bytes.
    Double,
    /// A length and bytes.
    Bytes,
    /// A length and UTF-8.
    String,
    /// This many bytes.
    Fixed(usize),
    /// An index into these symbols.
    Enum(Arc<[String]>),
    /// Blocks of items.
    Array(Arc<Node>),
    /// Blocks of texts and items.
    Map(Arc<Node>),
    /// An index into these, and the one that it names.
    Union(Arc<[Node]>),
    /// Its fields, one after the other.
    Record(Arc<[Field]>),
}

impl Node {
    /// The record that this is, or may be as a branch of a union: the members of a compound field.
    pub fn members(&self) -> Option<&[Field]> {
        match self {
            Self::Record(fields) => Some(fields),
            Self::Union(branches) => branches.iter().find_map(|branch| match branch {
                Self::Record(fields) => Some(&**fields),
                _ => None,
            }),
            _ => None,
        }
    }
}

/// A named field of a record.
#[derive(Debug, Clone)]
pub struct Field {
    /// The name.
    pub name: String,
    /// What its value looks like.
    pub node: Node,
}

/// The header of a change event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Header {
    /// The sObject's API name.
    pub entity_name: String,
    /// The records, 18 characters each; or a wildcard like `001*`.
    pub record_ids: Vec<String>,
    /// What happened: `CREATE`, `UPDATE`, `DELETE`, `UNDELETE`, `GAP_…`.
    pub change_type: String,
    /// By which API and client.
    pub change_origin: String,
    /// The transaction.
    pub transaction_key: String,
    /// The place in the transaction, from 1.
    pub sequence_number: i32,
    /// When it was committed, in milliseconds since the Unix epoch.
    pub commit_timestamp: i64,
    /// The system change number.
    pub commit_number: i64,
    /// Who did it.
    pub commit_user: String,
    /// Bitmaps of the fields that were set to null.
    pub nulled_fields: Vec<String>,
    /// Bitmaps of the fields that are told as a difference.
    pub diff_fields: Vec<String>,
    /// Bitmaps of the fields that changed.
    pub changed_fields: Vec<String>,
}

/// A schema, ready to decode events.
#[derive(Debug, Clone)]
pub struct EventSchema {
    name: String,
    fields: Arc<[Field]>,
}

/// An event whose header has been read.
#[derive(Debug)]
pub struct Opened<'a> {
    /// The header.
    pub header: Header,
    walk: Walk<'a>,
    fields: &'a [Field],
}

impl EventSchema {
    /// Reads a schema as `GetSchema` gives it.
    pub fn parse(json: &str) -> Result<Self, AvroError> {
        let schema = Schema::parse_str(json).map_err(|e| AvroError::Schema(e.to_string()))?;
        let Schema::Record(record) = &schema else {
            return Err(AvroError::Schema("it is not a record".into()));
        };
        let name = record.name.name.clone();
        let Node::Record(fields) = compile(&schema, None, &mut BTreeMap::new())? else {
            return Err(AvroError::Schema("it is not a record".into()));
        };
        match fields.first() {
            Some(first) if first.name == "ChangeEventHeader" && matches!(first.node, Node::Record(_)) => {
                Ok(Self { name, fields })
            }
            _ => Err(AvroError::NotAChangeEvent(name)),
        }
    }

    /// The record's name, like `AccountChangeEvent`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All fields. The header is field 0; the numbers are those of the bitmaps.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// Reads an event's header.
    pub fn open<'a>(&'a self, payload: &'a [u8]) -> Result<Opened<'a>, AvroError> {
        let mut walk = Walk { bytes: payload, at: 0 };
        let Some((header, fields)) = self.fields.split_first() else {
            return Err(AvroError::NotAChangeEvent(self.name.clone()));
        };
        let header = Header::from_value(walk.value(&header.node)?)?;
        Ok(Opened { header, walk, fields })
    }
}

impl Opened<'_> {
    /// Reads the rest: one place for each field of the schema, with the value where `take` says so. The header's place,
    /// number 0, is empty.
    pub fn body(mut self, take: impl Fn(usize) -> bool) -> Result<(Header, Vec<Option<Value>>), AvroError> {
        let mut values = Vec::with_capacity(self.fields.len() + 1);
        values.push(None);
        for (n, field) in self.fields.iter().enumerate() {
            if take(n + 1) {
                values.push(Some(self.walk.value(&field.node)?));
            } else {
                self.walk.skip(&field.node)?;
                values.push(None);
            }
        }
        match self.walk.bytes.len() - self.walk.at {
            0 => Ok((self.header, values)),
            left => Err(AvroError::TooLong(left)),
        }
    }
}

impl Header {
    fn from_value(value: Value) -> Result<Self, AvroError> {
        let Value::Record(fields) = value else { return Err(AvroError::Header("record")) };
        let mut header = Self::default();
        let mut seen = 0;
        for (name, value) in fields {
            match (name.as_str(), value) {
                ("entityName", Value::String(text)) => header.entity_name = text,
                ("recordIds", Value::Array(items)) => header.record_ids = texts(items),
                ("changeType", Value::Enum(_, text) | Value::String(text)) => header.change_type = text,
                ("changeOrigin", Value::String(text)) => header.change_origin = text,
                ("transactionKey", Value::String(text)) => header.transaction_key = text,
                ("sequenceNumber", Value::Int(n)) => header.sequence_number = n,
                ("commitTimestamp", Value::Long(n)) => header.commit_timestamp = n,
                ("commitNumber", Value::Long(n)) => header.commit_number = n,
                ("commitUser", Value::String(text)) => header.commit_user = text,
                ("nulledFields", Value::Array(items)) => header.nulled_fields = texts(items),
                ("diffFields", Value::Array(items)) => header.diff_fields = texts(items),
                ("changedFields", Value::Array(items)) => header.changed_fields = texts(items),
                _ => continue,
            }
            seen += 1;
        }
        // All twelve are needed: a header that lacks one would make changes look like none.
        if seen < 12 {
            return Err(AvroError::Header("field that every change event has"));
        }
        Ok(header)
    }
}

fn texts(items: Vec<Value>) -> Vec<String> {
    let text = |item| match item {
        Value::String(text) => Some(text),
        _ => None,
    };
    items.into_iter().filter_map(text).collect()
}

/// Turns a parsed schema into nodes, with named types put in where they are referred to. A type that contains itself is
/// refused, so that a walk is as deep as the schema and no deeper.
fn compile(
    schema: &Schema,
    namespace: Option<&str>,
    named: &mut BTreeMap<String, Option<Node>>,
) -> Result<Node, AvroError> {
    let full = |name: &apache_avro::schema::Name| name.fullname(namespace.map(str::to_owned));
    Ok(match schema {
        Schema::Null => Node::Null,
        Schema::Boolean => Node::Boolean,
        Schema::Int | Schema::Date | Schema::TimeMillis => Node::Int,
        Schema::Long
        | Schema::TimeMicros
        | Schema::TimestampMillis
        | Schema::TimestampMicros
        | Schema::TimestampNanos
        | Schema::LocalTimestampMillis
        | Schema::LocalTimestampMicros
        | Schema::LocalTimestampNanos => Node::Long,
        Schema::Float => Node::Float,
        Schema::Double => Node::Double,
        Schema::Bytes | Schema::BigDecimal => Node::Bytes,
        Schema::String | Schema::Uuid => Node::String,
        Schema::Duration => Node::Fixed(12),
        Schema::Decimal(decimal) => compile(&decimal.inner, namespace, named)?,
        Schema::Fixed(fixed) => {
            let node = Node::Fixed(fixed.size);
            named.insert(full(&fixed.name), Some(node.clone()));
            node
        }
        Schema::Enum(e) => {
            let node = Node::Enum(e.symbols.as_slice().into());
            named.insert(full(&e.name), Some(node.clone()));
            node
        }
        Schema::Array(array) => Node::Array(Arc::new(compile(&array.items, namespace, named)?)),
        Schema::Map(map) => Node::Map(Arc::new(compile(&map.types, namespace, named)?)),
        Schema::Union(union) => {
            let branches: Result<Vec<_>, _> = union.variants().iter().map(|v| compile(v, namespace, named)).collect();
            Node::Union(branches?.into())
        }
        Schema::Record(record) => {
            let name = full(&record.name);
            named.insert(name.clone(), None);
            let inner = name.rsplit_once('.').map(|(namespace, _)| namespace.to_owned());
            let mut fields = Vec::with_capacity(record.fields.len());
            for field in &record.fields {
                let node = compile(&field.schema, inner.as_deref(), named)?;
                fields.push(Field { name: field.name.clone(), node });
            }
            let node = Node::Record(fields.into());
            named.insert(name, Some(node.clone()));
            node
        }
        Schema::Ref { name } => {
            let name = full(name);
            match named.get(&name) {
                Some(Some(node)) => node.clone(),
                Some(None) => return Err(AvroError::Schema(format!("type {name} contains itself"))),
                None => return Err(AvroError::Schema(format!("type {name} is not defined"))),
            }
        }
    })
}

/// A place in an event's bytes.
#[derive(Debug)]
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Walk<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], AvroError> {
        let end = self.at.checked_add(length).ok_or(AvroError::Short(self.at))?;
        let taken = self.bytes.get(self.at..end).ok_or(AvroError::Short(self.bytes.len()))?;
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], AvroError> {
        self.take(N)?.try_into().map_err(|_| AvroError::Short(self.at))
    }

    /// A zigzag varint.
    fn long(&mut self) -> Result<i64, AvroError> {
        let start = self.at;
        let mut n = 0u64;
        for shift in (0..70).step_by(7) {
            let [byte] = self.array()?;
            if shift == 63 && byte > 1 {
                return Err(AvroError::Number(start));
            }
            n |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok((n >> 1) as i64 ^ -((n & 1) as i64));
            }
        }
        Err(AvroError::Number(start))
    }

    fn int(&mut self) -> Result<i32, AvroError> {
        let at = self.at;
        i32::try_from(self.long()?).map_err(|_| AvroError::Number(at))
    }

    /// A number that must be at least 0 and below `limit`.
    fn index(&mut self, what: &'static str, limit: usize) -> Result<usize, AvroError> {
        let at = self.at;
        let value = self.long()?;
        usize::try_from(value).ok().filter(|n| *n < limit).ok_or(AvroError::Invalid { what, value, at })
    }

    fn prefixed(&mut self) -> Result<&'a [u8], AvroError> {
        let length = self.index("length", usize::MAX)?;
        self.take(length)
    }

    fn string(&mut self) -> Result<&'a str, AvroError> {
        let at = self.at;
        std::str::from_utf8(self.prefixed()?).map_err(|_| AvroError::Text(at))
    }

    /// The one of `choices` that an index names, and the index.
    fn chosen<'c, T>(&mut self, what: &'static str, choices: &'c [T]) -> Result<(u32, &'c T), AvroError> {
        let at = self.at;
        let n = self.index(what, choices.len())?;
        let chosen = choices.get(n).ok_or(AvroError::Invalid { what, value: n as i64, at })?;
        Ok((n as u32, chosen))
    }

    /// Runs `item` for each item of the blocks of an array or map.
    fn blocks(&mut self, mut item: impl FnMut(&mut Self) -> Result<(), AvroError>) -> Result<(), AvroError> {
        let mut total = 0usize;
        loop {
            let at = self.at;
            let mut count = self.long()?;
            if count == 0 {
                return Ok(());
            }
            if count < 0 {
                // A negative count is followed by the block's size in bytes, which is not needed.
                self.index("block size", usize::MAX)?;
                count = count.checked_neg().ok_or(AvroError::Number(at))?;
            }
            total = total.saturating_add(usize::try_from(count).unwrap_or(usize::MAX));
            if total > ITEMS_MAX {
                return Err(AvroError::Invalid { what: "count of items", value: count, at });
            }
            for _ in 0..count {
                item(self)?;
            }
        }
    }

    fn value(&mut self, node: &Node) -> Result<Value, AvroError> {
        Ok(match node {
            Node::Null => Value::Null,
            Node::Boolean => {
                let at = self.at;
                match self.array()? {
                    [0] => Value::Boolean(false),
                    [1] => Value::Boolean(true),
                    [other] => return Err(AvroError::Invalid { what: "boolean", value: i64::from(other), at }),
                }
            }
            Node::Int => Value::Int(self.int()?),
            Node::Long => Value::Long(self.long()?),
            Node::Float => Value::Float(f32::from_le_bytes(self.array()?)),
            Node::Double => Value::Double(f64::from_le_bytes(self.array()?)),
            Node::Bytes => Value::Bytes(self.prefixed()?.to_vec()),
            Node::String => Value::String(self.string()?.to_owned()),
            Node::Fixed(size) => Value::Fixed(*size, self.take(*size)?.to_vec()),
            Node::Enum(symbols) => {
                let (n, symbol) = self.chosen("symbol", symbols)?;
                Value::Enum(n, symbol.clone())
            }
            Node::Array(items) => {
                let mut values = Vec::new();
                self.blocks(|walk| {
                    values.push(walk.value(items)?);
                    Ok(())
                })?;
                Value::Array(values)
            }
            Node::Map(items) => {
                let mut values = std::collections::HashMap::new();
                self.blocks(|walk| {
                    let key = walk.string()?.to_owned();
                    values.insert(key, walk.value(items)?);
                    Ok(())
                })?;
                Value::Map(values)
            }
            Node::Union(branches) => {
                let (n, branch) = self.chosen("union branch", branches)?;
                Value::Union(n, Box::new(self.value(branch)?))
            }
            Node::Record(fields) => {
                let mut values = Vec::with_capacity(fields.len());
                for field in fields.iter() {
                    values.push((field.name.clone(), self.value(&field.node)?));
                }
                Value::Record(values)
            }
        })
    }

    fn skip(&mut self, node: &Node) -> Result<(), AvroError> {
        match node {
            Node::Null => {}
            Node::Boolean => self.take(1).map(drop)?,
            Node::Int | Node::Long => self.long().map(drop)?,
            Node::Float => self.take(4).map(drop)?,
            Node::Double => self.take(8).map(drop)?,
            Node::Bytes | Node::String => self.prefixed().map(drop)?,
            Node::Fixed(size) => self.take(*size).map(drop)?,
            Node::Enum(symbols) => self.index("symbol", symbols.len()).map(drop)?,
            Node::Array(items) => self.blocks(|walk| walk.skip(items))?,
            Node::Map(items) => self.blocks(|walk| {
                walk.prefixed()?;
                walk.skip(items)
            })?,
            Node::Union(branches) => {
                let (_, branch) = self.chosen("union branch", branches)?;
                self.skip(branch)?;
            }
            Node::Record(fields) => fields.iter().try_for_each(|field| self.skip(&field.node))?,
        }
        Ok(())
    }
}

/// The REST name of a member of a compound field: `BillingAddress.City` is `BillingCity`, `Name.FirstName` is `FirstName`,
/// `Loc__c.Latitude` is `Loc__Latitude__s`.
pub fn member_name(compound: &str, member: &str) -> String {
    if let Some(custom) = compound.strip_suffix("__c") {
        return format!("{custom}__{member}__s");
    }
    match compound.strip_suffix("Address") {
        Some(kind) => format!("{kind}{member}"),
        None => member.to_owned(),
    }
}

#[cfg(test)]
#[path = "avro_tests.rs"]
mod tests;
