//! The bitmaps of a change event header: which fields of the Avro record are meant.
//!
//! A bitmap is upper-case hexadecimal, big-endian, of as few whole bytes as hold it; bit `i` is the record's field `i`,
//! the header being field 0. Members of a compound field have a bitmap of their own, led by the compound's index.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A set of field indexes, with the members of compounds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Bitmap {
    top: Vec<u8>,
    nested: BTreeMap<usize, Vec<u8>>,
}

impl Bitmap {
    /// Adds a field of the record itself.
    pub(crate) fn add(&mut self, index: usize) {
        set(&mut self.top, index);
    }

    /// Adds a member of the compound field at `parent`.
    pub(crate) fn add_member(&mut self, parent: usize, member: usize) {
        set(self.nested.entry(parent).or_default(), member);
    }

    /// The elements as the header carries them; none for an empty set.
    pub(crate) fn elements(&self) -> Vec<String> {
        let mut elements = Vec::with_capacity(1 + self.nested.len());
        if !self.top.is_empty() {
            elements.push(hex(&self.top));
        }
        elements.extend(self.nested.iter().map(|(parent, bits)| format!("{parent}-{}", hex(bits))));
        elements
    }
}

/// Sets a bit in bytes that begin with the lowest eight.
fn set(bytes: &mut Vec<u8>, index: usize) {
    let (byte, bit) = (index / 8, index % 8);
    if bytes.len() <= byte {
        bytes.resize(byte + 1, 0);
    }
    bytes[byte] |= 1 << bit;
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::from("0x");
    for byte in bytes.iter().rev() {
        // Writing to a String cannot fail.
        write!(text, "{byte:02X}").ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bits: &[usize]) -> String {
        let mut bitmap = Bitmap::default();
        for &bit in bits {
            bitmap.add(bit);
        }
        bitmap.elements().join(",")
    }

    #[test]
    fn known_bitmaps() {
        assert_eq!(of(&[]), "");
        assert_eq!(of(&[0]), "0x01");
        assert_eq!(of(&[7]), "0x80");
        assert_eq!(of(&[8]), "0x0100");
        assert_eq!(of(&[1, 2]), "0x06");
        assert_eq!(of(&[4, 12, 23]), "0x801010");
        assert_eq!(of(&[23, 86]), "0x4000000000000000800000");
        assert_eq!(of(&[3, 12, 23, 33, 64]), "0x010000000200801008");
        assert_eq!(of(&[11, 22]), "0x400800");
        assert_eq!(of(&[12, 19, 20, 21, 22, 23, 27]), "0x08F81000");
    }

    #[test]
    fn members_follow_the_fields() {
        let mut bitmap = Bitmap::default();
        bitmap.add_member(4, 0);
        bitmap.add(22);
        assert_eq!(bitmap.elements(), ["0x400000", "4-0x01"]);
        let mut only = Bitmap::default();
        only.add_member(6, 7);
        only.add_member(6, 8);
        assert_eq!(only.elements(), ["6-0x0180"]);
    }
}
