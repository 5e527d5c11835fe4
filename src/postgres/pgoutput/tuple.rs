//! A row's columns as they stand in a message.

use super::reader::{DecodeError, Reader};

/// One column of a tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnValue<'a> {
    /// Null; in a key-only old tuple also every column that is not of the key.
    Null,
    /// A large value that did not change and was not sent.
    UnchangedToast,
    /// The value as the server prints it, in UTF-8 as the session asked for.
    Text(&'a [u8]),
    /// The value in the type's binary form.
    Binary(&'a [u8]),
}

/// A row's columns, checked as a whole and walked without failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple<'a> {
    columns: u16,
    bytes: &'a [u8],
}

impl<'a> Tuple<'a> {
    /// Takes a tuple off the reader, checking every column's bounds.
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let columns = reader.u16("column count")?;
        let bytes = reader.rest();
        for _ in 0..columns {
            match reader.u8("column kind")? {
                b'n' | b'u' => {}
                b't' | b'b' => {
                    let length = reader.u32("column length")?;
                    reader.take(length as usize, "column value")?;
                }
                byte => return Err(DecodeError::Unknown { what: "column kind", byte }),
            }
        }
        let length = bytes.len() - reader.remaining();
        let bytes = bytes.get(..length).ok_or(DecodeError::Truncated("tuple"))?;
        Ok(Self { columns, bytes })
    }

    /// How many columns it has.
    pub fn len(&self) -> usize {
        usize::from(self.columns)
    }

    /// Whether it has no columns at all (a table without any).
    pub fn is_empty(&self) -> bool {
        self.columns == 0
    }

    /// The columns in the relation's order.
    pub fn columns(&self) -> impl Iterator<Item = ColumnValue<'a>> + use<'a> {
        let mut rest = self.bytes;
        std::iter::from_fn(move || {
            let (kind, after) = rest.split_first()?;
            rest = after;
            match kind {
                b'n' => return Some(ColumnValue::Null),
                b'u' => return Some(ColumnValue::UnchangedToast),
                _ => {}
            }
            let (length, after) = rest.split_first_chunk::<4>()?;
            let (value, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
            rest = after;
            Some(if *kind == b't' { ColumnValue::Text(value) } else { ColumnValue::Binary(value) })
        })
    }
}
