//! A column of a batch as a statement takes it: an array of texts, in the form that goes over the wire from the start.

use std::error::Error;

use bytes::{BufMut as _, BytesMut};
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

/// An array of texts and nulls. Filling it costs no allocation for each of them.
#[derive(Debug, Default)]
pub(super) struct Texts {
    /// The elements, each behind its length.
    elements: Vec<u8>,
    count: i32,
    has_nulls: bool,
}

/// The length that stands for a null.
const NULL: i32 = -1;

impl Texts {
    /// Adds one.
    pub(super) fn push(&mut self, text: Option<&str>) {
        self.count += 1;
        if let Some(text) = text {
            // A text of PostgreSQL has less than 1 GB; the server refuses a message that is longer.
            self.elements.extend_from_slice(&(text.len() as i32).to_be_bytes());
            self.elements.extend_from_slice(text.as_bytes());
        } else {
            self.has_nulls = true;
            self.elements.extend_from_slice(&NULL.to_be_bytes());
        }
    }
}

impl ToSql for Texts {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.reserve(20 + self.elements.len());
        // One dimension, whether there are nulls, the elements' type, how many there are, and the first one's index.
        out.put_i32(1);
        out.put_i32(i32::from(self.has_nulls));
        out.put_u32(Type::TEXT.oid());
        out.put_i32(self.count);
        out.put_i32(1);
        out.put_slice(&self.elements);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TEXT_ARRAY
    }

    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_over_the_wire_as_a_vector_does() {
        let given = [Some("a"), None, Some(""), Some("Grüße")];
        let mut texts = Texts::default();
        for text in given {
            texts.push(text);
        }
        let (mut ours, mut theirs) = (BytesMut::new(), BytesMut::new());
        texts.to_sql_checked(&Type::TEXT_ARRAY, &mut ours).unwrap();
        given.to_vec().to_sql_checked(&Type::TEXT_ARRAY, &mut theirs).unwrap();
        assert_eq!(ours, theirs);
        assert!(texts.to_sql_checked(&Type::INT4, &mut ours).is_err());
    }
}
