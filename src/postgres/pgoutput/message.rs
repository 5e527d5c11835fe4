//! The messages themselves.

use super::reader::{DecodeError, Reader};
use super::relation::{RelationColumn, ReplicaIdentity};
use super::tuple::Tuple;
use crate::change::Lsn;
use crate::clock::Micros;

/// What an old tuple holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldKind {
    /// The replica identity's columns; the others are told as null and are not.
    Key,
    /// The whole row.
    Row,
}

/// A row as it was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OldTuple<'a> {
    /// How much of it is told.
    pub kind: OldKind,
    /// The columns.
    pub tuple: Tuple<'a>,
}

/// What a relation looks like from here on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationMessage<'a> {
    /// The relation's oid.
    pub oid: u32,
    /// Its schema.
    pub schema: &'a str,
    /// Its name.
    pub name: &'a str,
    /// How the server names its rows.
    pub replica_identity: ReplicaIdentity,
    columns: u16,
    bytes: &'a [u8],
}

impl<'a> RelationMessage<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let oid = reader.u32("relation oid")?;
        let schema = catalog_schema(reader.text("schema name")?);
        let name = reader.text("relation name")?;
        let replica_identity = match reader.u8("replica identity")? {
            b'd' => ReplicaIdentity::Default,
            b'n' => ReplicaIdentity::Nothing,
            b'f' => ReplicaIdentity::Full,
            b'i' => ReplicaIdentity::Index,
            byte => return Err(DecodeError::Unknown { what: "replica identity", byte }),
        };
        let columns = reader.u16("column count")?;
        let bytes = reader.rest();
        for _ in 0..columns {
            read_column(reader)?;
        }
        Ok(Self { oid, schema, name, replica_identity, columns, bytes })
    }

    /// The columns in the order of tuples.
    pub fn columns(&self) -> impl Iterator<Item = RelationColumn> + use<'a> {
        let mut reader = Reader::new(self.bytes);
        (0..self.columns).map_while(move |_| read_column(&mut reader).ok())
    }
}

fn read_column(reader: &mut Reader<'_>) -> Result<RelationColumn, DecodeError> {
    let flags = reader.u8("column flags")?;
    if flags > 1 {
        return Err(DecodeError::Unknown { what: "column flags", byte: flags });
    }
    Ok(RelationColumn {
        is_key: flags == 1,
        name: reader.text("column name")?.to_owned(),
        type_oid: reader.u32("column type")?,
        type_modifier: reader.i32("column type modifier")?,
    })
}

/// The stream leaves the name of `pg_catalog` out.
fn catalog_schema(schema: &str) -> &str {
    if schema.is_empty() { "pg_catalog" } else { schema }
}

/// A message. `xid` is there only within a segment of a streamed transaction, and is the subtransaction's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are named as in PostgreSQL's documentation of the message formats")]
pub enum Message<'a> {
    /// A transaction begins; `final_lsn` is its commit's `commit_lsn`.
    Begin { final_lsn: Lsn, committed_at: Micros, xid: u32 },
    /// It ends.
    Commit { commit_lsn: Lsn, end_lsn: Lsn, committed_at: Micros },
    /// It was replicated into this server from elsewhere.
    Origin { lsn: Lsn, name: &'a str },
    /// What a relation looks like from here on.
    Relation { xid: Option<u32>, relation: RelationMessage<'a> },
    /// What a type that is not built in is called; for a domain its base type.
    Type { xid: Option<u32>, oid: u32, schema: &'a str, name: &'a str },
    /// A row was inserted.
    Insert { xid: Option<u32>, relation: u32, new: Tuple<'a> },
    /// A row was updated.
    Update { xid: Option<u32>, relation: u32, old: Option<OldTuple<'a>>, new: Tuple<'a> },
    /// A row was deleted.
    Delete { xid: Option<u32>, relation: u32, old: OldTuple<'a> },
    /// Relations were emptied.
    Truncate { xid: Option<u32>, cascade: bool, restart_identity: bool, relations: &'a [[u8; 4]] },
    /// A message of `pg_logical_emit_message`.
    Logical { xid: Option<u32>, transactional: bool, lsn: Lsn, prefix: &'a str, content: &'a [u8] },
    /// A segment of a transaction in progress begins.
    StreamStart { xid: u32, first_segment: bool },
    /// The segment ends.
    StreamStop,
    /// A streamed transaction committed.
    StreamCommit { xid: u32, commit_lsn: Lsn, end_lsn: Lsn, committed_at: Micros },
    /// A streamed transaction or a part of it rolled back. The last two only with `streaming = parallel`.
    StreamAbort { xid: u32, subxid: u32, aborted: Option<(Lsn, Micros)> },
    /// A transaction that is to be prepared begins.
    BeginPrepare { prepare_lsn: Lsn, end_lsn: Lsn, prepared_at: Micros, xid: u32, gid: &'a str },
    /// It was prepared.
    Prepare { prepare_lsn: Lsn, end_lsn: Lsn, prepared_at: Micros, xid: u32, gid: &'a str },
    /// A prepared transaction committed.
    CommitPrepared { commit_lsn: Lsn, end_lsn: Lsn, committed_at: Micros, xid: u32, gid: &'a str },
    /// A prepared transaction rolled back.
    RollbackPrepared {
        prepare_end_lsn: Lsn,
        rollback_end_lsn: Lsn,
        prepared_at: Micros,
        rolled_back_at: Micros,
        xid: u32,
        gid: &'a str,
    },
    /// A streamed transaction was prepared.
    StreamPrepare { prepare_lsn: Lsn, end_lsn: Lsn, prepared_at: Micros, xid: u32, gid: &'a str },
}

/// Decodes one session's messages, in order.
#[derive(Debug, Clone, Default)]
pub struct Decoder {
    /// Between Stream Start and Stream Stop, where messages carry their transaction id.
    in_segment: bool,
}

impl Decoder {
    /// A decoder at the start of a session.
    pub fn new() -> Self {
        Self::default()
    }

    /// A decoder within a streamed transaction's segment.
    pub fn within_segment() -> Self {
        Self { in_segment: true }
    }

    /// Decodes one message; all its bytes must belong to it.
    pub fn decode<'a>(&mut self, bytes: &'a [u8]) -> Result<Message<'a>, DecodeError> {
        let mut reader = Reader::new(bytes);
        let tag = reader.u8("tag")?;
        let message = match tag {
            b'I' | b'U' | b'D' | b'R' | b'Y' | b'T' | b'M' => self.read_in_transaction(tag, &mut reader)?,
            b'B' | b'C' | b'b' | b'P' | b'K' | b'r' if self.in_segment => {
                return Err(DecodeError::OutOfPlace("a transaction's bounds stand within a streamed segment"));
            }
            b'B' | b'C' | b'O' | b'b' | b'P' | b'K' | b'r' => Self::read_bounds(tag, &mut reader)?,
            b'S' | b'E' | b'c' | b'A' | b'p' => self.read_stream(tag, &mut reader)?,
            byte => return Err(DecodeError::Unknown { what: "message", byte }),
        };
        reader.end()?;
        Ok(message)
    }

    fn read_in_transaction<'a>(&self, tag: u8, reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
        let xid = if self.in_segment { Some(reader.u32("transaction id")?) } else { None };
        Ok(match tag {
            b'I' => {
                let relation = reader.u32("relation oid")?;
                Message::Insert { xid, relation, new: read_new(reader)? }
            }
            b'U' => {
                let relation = reader.u32("relation oid")?;
                let old = match reader.rest().first() {
                    Some(b'N') => None,
                    _ => Some(read_old(reader)?),
                };
                Message::Update { xid, relation, old, new: read_new(reader)? }
            }
            b'D' => Message::Delete { xid, relation: reader.u32("relation oid")?, old: read_old(reader)? },
            b'R' => Message::Relation { xid, relation: RelationMessage::read(reader)? },
            b'Y' => Message::Type {
                xid,
                oid: reader.u32("type oid")?,
                schema: catalog_schema(reader.text("type schema")?),
                name: reader.text("type name")?,
            },
            b'T' => {
                let count = reader.u32("relation count")?;
                let flags = reader.u8("truncate flags")?;
                if flags > 3 {
                    return Err(DecodeError::Unknown { what: "truncate flags", byte: flags });
                }
                let length = (count as usize).checked_mul(4).ok_or(DecodeError::Truncated("relation list"))?;
                let (relations, _) = reader.take(length, "relation list")?.as_chunks::<4>();
                Message::Truncate { xid, cascade: flags & 1 != 0, restart_identity: flags & 2 != 0, relations }
            }
            _ => {
                let transactional = reader.u8("message flags")?;
                if transactional > 1 {
                    return Err(DecodeError::Unknown { what: "message flags", byte: transactional });
                }
                let lsn = reader.lsn("message lsn")?;
                let prefix = reader.text("message prefix")?;
                let length = reader.u32("message length")?;
                let content = reader.take(length as usize, "message content")?;
                Message::Logical { xid, transactional: transactional == 1, lsn, prefix, content }
            }
        })
    }

    fn read_bounds<'a>(tag: u8, reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
        Ok(match tag {
            b'B' => Message::Begin {
                final_lsn: reader.lsn("final lsn")?,
                committed_at: reader.time("commit time")?,
                xid: reader.u32("transaction id")?,
            },
            b'C' => {
                no_flags(reader)?;
                Message::Commit {
                    commit_lsn: reader.lsn("commit lsn")?,
                    end_lsn: reader.lsn("end lsn")?,
                    committed_at: reader.time("commit time")?,
                }
            }
            b'O' => Message::Origin { lsn: reader.lsn("origin lsn")?, name: reader.text("origin name")? },
            b'b' => {
                let (prepare_lsn, end_lsn, prepared_at, xid, gid) = read_prepared(reader)?;
                Message::BeginPrepare { prepare_lsn, end_lsn, prepared_at, xid, gid }
            }
            b'P' => {
                no_flags(reader)?;
                let (prepare_lsn, end_lsn, prepared_at, xid, gid) = read_prepared(reader)?;
                Message::Prepare { prepare_lsn, end_lsn, prepared_at, xid, gid }
            }
            b'K' => {
                no_flags(reader)?;
                let (commit_lsn, end_lsn, committed_at, xid, gid) = read_prepared(reader)?;
                Message::CommitPrepared { commit_lsn, end_lsn, committed_at, xid, gid }
            }
            _ => {
                no_flags(reader)?;
                Message::RollbackPrepared {
                    prepare_end_lsn: reader.lsn("prepare end lsn")?,
                    rollback_end_lsn: reader.lsn("rollback end lsn")?,
                    prepared_at: reader.time("prepare time")?,
                    rolled_back_at: reader.time("rollback time")?,
                    xid: reader.u32("transaction id")?,
                    gid: reader.text("transaction name")?,
                }
            }
        })
    }

    fn read_stream<'a>(&mut self, tag: u8, reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
        let opens = tag == b'S';
        if self.in_segment && tag != b'E' {
            return Err(DecodeError::OutOfPlace("a streamed segment is open and was not stopped"));
        }
        if !self.in_segment && tag == b'E' {
            return Err(DecodeError::OutOfPlace("a streamed segment was stopped and none is open"));
        }
        let message = match tag {
            b'S' => {
                let xid = reader.u32("transaction id")?;
                let first = reader.u8("first segment flag")?;
                if first > 1 {
                    return Err(DecodeError::Unknown { what: "first segment flag", byte: first });
                }
                Message::StreamStart { xid, first_segment: first == 1 }
            }
            b'E' => Message::StreamStop,
            b'c' => {
                let xid = reader.u32("transaction id")?;
                no_flags(reader)?;
                Message::StreamCommit {
                    xid,
                    commit_lsn: reader.lsn("commit lsn")?,
                    end_lsn: reader.lsn("end lsn")?,
                    committed_at: reader.time("commit time")?,
                }
            }
            b'A' => {
                let (xid, subxid) = (reader.u32("transaction id")?, reader.u32("subtransaction id")?);
                let aborted = if reader.remaining() == 0 {
                    None
                } else {
                    Some((reader.lsn("abort lsn")?, reader.time("abort time")?))
                };
                Message::StreamAbort { xid, subxid, aborted }
            }
            _ => {
                no_flags(reader)?;
                let (prepare_lsn, end_lsn, prepared_at, xid, gid) = read_prepared(reader)?;
                Message::StreamPrepare { prepare_lsn, end_lsn, prepared_at, xid, gid }
            }
        };
        reader.end()?;
        self.in_segment = opens;
        Ok(message)
    }
}

fn read_new<'a>(reader: &mut Reader<'a>) -> Result<Tuple<'a>, DecodeError> {
    match reader.u8("new tuple")? {
        b'N' => Tuple::read(reader),
        byte => Err(DecodeError::Unknown { what: "tuple kind", byte }),
    }
}

fn read_old<'a>(reader: &mut Reader<'a>) -> Result<OldTuple<'a>, DecodeError> {
    let kind = match reader.u8("old tuple")? {
        b'K' => OldKind::Key,
        b'O' => OldKind::Row,
        byte => return Err(DecodeError::Unknown { what: "tuple kind", byte }),
    };
    Ok(OldTuple { kind, tuple: Tuple::read(reader)? })
}

fn no_flags(reader: &mut Reader<'_>) -> Result<(), DecodeError> {
    match reader.u8("flags")? {
        0 => Ok(()),
        byte => Err(DecodeError::Unknown { what: "flags", byte }),
    }
}

type Prepared<'a> = (Lsn, Lsn, Micros, u32, &'a str);

fn read_prepared<'a>(reader: &mut Reader<'a>) -> Result<Prepared<'a>, DecodeError> {
    Ok((
        reader.lsn("prepare lsn")?,
        reader.lsn("end lsn")?,
        reader.time("prepare time")?,
        reader.u32("transaction id")?,
        reader.text("transaction name")?,
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Relation;
    use super::super::reader::POSTGRES_EPOCH as EPOCH;
    use super::super::tuple::ColumnValue;
    use super::*;

    /// Builds messages by hand, field by field as the documentation lists them.
    #[derive(Default, Clone)]
    struct Bytes(Vec<u8>);

    impl Bytes {
        fn tag(tag: u8) -> Self {
            Self(vec![tag])
        }
        fn u8(mut self, n: u8) -> Self {
            self.0.push(n);
            self
        }
        fn u16(mut self, n: u16) -> Self {
            self.0.extend(n.to_be_bytes());
            self
        }
        fn u32(mut self, n: u32) -> Self {
            self.0.extend(n.to_be_bytes());
            self
        }
        fn u64(mut self, n: u64) -> Self {
            self.0.extend(n.to_be_bytes());
            self
        }
        fn text(mut self, text: &str) -> Self {
            self.0.extend(text.as_bytes());
            self.u8(0)
        }
        fn value(self, kind: u8, value: &[u8]) -> Self {
            let mut with = self.u8(kind).u32(value.len() as u32);
            with.0.extend(value);
            with
        }
    }

    fn samples() -> Vec<Vec<u8>> {
        let relation = |xid: Bytes| xid.u32(16).text("public").text("t").u8(b'd').u16(2);
        let columns = |b: Bytes| b.u8(1).text("id").u32(20).u32(u32::MAX).u8(0).text("name").u32(25).u32(u32::MAX);
        vec![
            Bytes::tag(b'B').u64(0x10).u64(5).u32(700).0,
            Bytes::tag(b'C').u8(0).u64(0x10).u64(0x18).u64(5).0,
            Bytes::tag(b'O').u64(0xABC).text("other").0,
            columns(relation(Bytes::tag(b'R'))).0,
            Bytes::tag(b'Y').u32(17_000).text("").text("numeric").0,
            Bytes::tag(b'I').u32(16).u8(b'N').u16(2).value(b't', b"1").u8(b'n').0,
            Bytes::tag(b'U').u32(16).u8(b'N').u16(2).value(b't', b"1").u8(b'u').0,
            Bytes::tag(b'U').u32(16).u8(b'K').u16(1).value(b't', b"1").u8(b'N').u16(1).value(b'b', b"\0\x01").0,
            Bytes::tag(b'U').u32(16).u8(b'O').u16(1).u8(b'n').u8(b'N').u16(0).0,
            Bytes::tag(b'D').u32(16).u8(b'K').u16(1).value(b't', b"1").0,
            Bytes::tag(b'T').u32(2).u8(3).u32(16).u32(17).0,
            Bytes::tag(b'M').u8(1).u64(0x20).text("tidelock").u32(2).u8(b'{').u8(b'}').0,
            Bytes::tag(b'b').u64(1).u64(2).u64(3).u32(4).text("gid").0,
            Bytes::tag(b'P').u8(0).u64(1).u64(2).u64(3).u32(4).text("gid").0,
            Bytes::tag(b'K').u8(0).u64(1).u64(2).u64(3).u32(4).text("gid").0,
            Bytes::tag(b'r').u8(0).u64(1).u64(2).u64(3).u64(3).u32(4).text("gid").0,
            Bytes::tag(b'p').u8(0).u64(1).u64(2).u64(3).u32(4).text("gid").0,
            Bytes::tag(b'c').u32(700).u8(0).u64(1).u64(2).u64(3).0,
            Bytes::tag(b'A').u32(700).u32(701).0,
            Bytes::tag(b'A').u32(700).u32(701).u64(9).u64(9).0,
            Bytes::tag(b'S').u32(700).u8(1).0,
            columns(relation(Bytes::tag(b'R').u32(701))).0,
            Bytes::tag(b'I').u32(701).u32(16).u8(b'N').u16(0).0,
            Bytes::tag(b'M').u32(701).u8(0).u64(0x20).text("p").u32(0).0,
            Bytes::tag(b'E').0,
        ]
    }

    #[test]
    fn every_message_of_every_version_decodes() {
        let mut decoder = Decoder::new();
        let samples = samples();
        let decoded: Vec<Message<'_>> = samples.iter().map(|bytes| decoder.decode(bytes).unwrap()).collect();
        assert_eq!(decoded[0], Message::Begin { final_lsn: Lsn(0x10), committed_at: EPOCH + 5, xid: 700 });
        let end = Message::Commit { commit_lsn: Lsn(0x10), end_lsn: Lsn(0x18), committed_at: EPOCH + 5 };
        assert_eq!(decoded[1], end);
        let Message::Relation { xid: None, relation } = decoded[3] else { panic!("{:?}", decoded[3]) };
        let relation = Relation::from(&relation);
        assert_eq!((relation.schema.as_str(), relation.name.as_str(), relation.columns.len()), ("public", "t", 2));
        assert!(relation.columns[0].is_key && relation.columns[1].name == "name");
        assert_eq!(decoded[4], Message::Type { xid: None, oid: 17_000, schema: "pg_catalog", name: "numeric" });
        let Message::Update { old: None, new, .. } = decoded[6] else { panic!("{:?}", decoded[6]) };
        assert_eq!(
            new.columns().collect::<Vec<_>>(),
            [ColumnValue::Text(b"1"), ColumnValue::UnchangedToast],
            "a value that was not sent is not null"
        );
        let Message::Update { old: Some(OldTuple { kind: OldKind::Key, .. }), new, .. } = decoded[7] else { panic!() };
        assert_eq!(new.columns().collect::<Vec<_>>(), [ColumnValue::Binary(b"\0\x01")]);
        let Message::Truncate { cascade: true, restart_identity: true, relations, .. } = decoded[10] else { panic!() };
        assert_eq!(relations.iter().map(|r| u32::from_be_bytes(*r)).collect::<Vec<_>>(), [16, 17]);
        assert!(matches!(
            decoded[11],
            Message::Logical { transactional: true, prefix: "tidelock", content: b"{}", .. }
        ));
        assert!(matches!(decoded[18], Message::StreamAbort { aborted: None, .. }));
        assert!(matches!(decoded[19], Message::StreamAbort { aborted: Some(_), .. }));
        assert!(matches!(decoded[22], Message::Insert { xid: Some(701), .. }), "segments carry transaction ids");
    }

    #[test]
    fn every_cut_and_every_extra_byte_is_an_error() {
        for (n, bytes) in samples().iter().enumerate() {
            let decoder_there = || {
                let mut decoder = Decoder::new();
                for before in &samples()[..n] {
                    decoder.decode(before).unwrap();
                }
                decoder
            };
            for cut in 0..bytes.len() {
                // An abort without its last two fields is whole before protocol 4.
                if !(bytes[0] == b'A' && cut == 9) {
                    assert!(decoder_there().decode(&bytes[..cut]).is_err(), "sample {n} cut at {cut}");
                }
            }
            let longer = [bytes.as_slice(), &[0]].concat();
            assert!(decoder_there().decode(&longer).is_err(), "sample {n} with a byte more");
        }
    }

    #[test]
    fn unknown_bytes_are_named() {
        let mut decoder = Decoder::new();
        assert_eq!(decoder.decode(b"?"), Err(DecodeError::Unknown { what: "message", byte: b'?' }));
        assert!(decoder.decode(b"E").is_err(), "no segment is open");
        let insert = Bytes::tag(b'I').u32(16).u8(b'N').u16(1).u8(b'x').0;
        assert_eq!(decoder.decode(&insert), Err(DecodeError::Unknown { what: "column kind", byte: b'x' }));
    }

    /// Reads everything a message refers to, so that a bad bound would show.
    fn walk(message: &Message<'_>) -> usize {
        match message {
            Message::Insert { new, .. } => new.columns().count(),
            Message::Update { old, new, .. } => new.columns().count() + old.map_or(0, |o| o.tuple.columns().count()),
            Message::Delete { old, .. } => old.tuple.columns().count(),
            Message::Relation { relation, .. } => Relation::from(relation).columns.len(),
            _ => 0,
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), segment: bool) {
            let mut decoder = Decoder { in_segment: segment };
            if let Ok(message) = decoder.decode(&bytes) {
                walk(&message);
            }
        }

        #[test]
        fn mutated_messages_never_panic(n in 0usize..25, at in 0usize..80, byte: u8, cut in 0usize..80, segment: bool) {
            let mut bytes = samples()[n].clone();
            let length = bytes.len();
            bytes[at % length] = byte;
            bytes.truncate(length - cut % length.min(8));
            let mut decoder = Decoder { in_segment: segment };
            if let Ok(message) = decoder.decode(&bytes) {
                walk(&message);
            }
        }

        #[test]
        fn a_tuple_gives_back_what_was_put_in(
            values in proptest::collection::vec(proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)), 0..20)
        ) {
            let mut bytes = Bytes::tag(b'I').u32(1).u8(b'N').u16(values.len() as u16);
            for value in &values {
                bytes = match value { Some(v) => bytes.value(b't', v), None => bytes.u8(b'n') };
            }
            let mut decoder = Decoder::new();
            let Message::Insert { new, .. } = decoder.decode(&bytes.0).unwrap() else { panic!() };
            prop_assert_eq!(new.len(), values.len());
            for (column, value) in new.columns().zip(&values) {
                prop_assert_eq!(column, value.as_ref().map_or(ColumnValue::Null, |v| ColumnValue::Text(v)));
            }
        }
    }
}
