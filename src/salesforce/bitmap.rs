//! The bitmaps by which a change event says which of its fields changed.
//!
//! Each is a list of texts: `0x<HEX>` is over the fields of the event's schema, the header being field 0; `<n>-0x<HEX>` is
//! over the members of the compound field `n`. Bytes are big-endian: the last byte holds bits 0 to 7. A compound's own bit
//! is not set when only some of its members changed. Read by digits, never as an integer: 87 fields do not fit.

/// Why a text is not a bitmap.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BitmapError {
    /// No `0x`, or digits that are not hexadecimal.
    #[error("{0:?} is not a bitmap of changed fields")]
    NotHex(String),
    /// More digits than a schema has fields.
    #[error("a bitmap of changed fields has {0} digits")]
    TooLong(usize),
    /// What comes before `-` is no field number.
    #[error("{0:?} does not begin with a field number")]
    NotAParent(String),
}

/// A schema has a thousand fields at most; this is far above.
const DIGITS_MAX: usize = 4_096;

/// Field numbers of a schema, and member numbers of its compound fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSet {
    whole: Bits,
    members: Vec<(usize, Bits)>,
}

/// Bits, the lowest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Bits(Vec<u8>);

impl Bits {
    fn parse(text: &str) -> Result<Self, BitmapError> {
        let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
        let digits = digits.ok_or_else(|| BitmapError::NotHex(text.chars().take(64).collect()))?;
        if digits.len() > DIGITS_MAX {
            return Err(BitmapError::TooLong(digits.len()));
        }
        let nibble = |c: u8| char::from(c).to_digit(16).map(|d| d as u8);
        let not_hex = || BitmapError::NotHex(text.chars().take(64).collect());
        digits
            .as_bytes()
            .rchunks(2)
            .map(|pair| pair.iter().try_fold(0u8, |byte, c| nibble(*c).map(|d| byte << 4 | d)).ok_or_else(not_hex))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn contains(&self, n: usize) -> bool {
        self.0.get(n / 8).is_some_and(|byte| byte & (1 << (n % 8)) != 0)
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }
}

impl FieldSet {
    /// Reads a list of bitmaps.
    pub fn parse<S: AsRef<str>>(texts: &[S]) -> Result<Self, BitmapError> {
        let mut set = Self::default();
        for text in texts {
            let text = text.as_ref();
            match text.split_once('-') {
                None => set.whole = Bits::parse(text)?,
                Some((parent, bits)) => {
                    let parent =
                        parent.parse().map_err(|_| BitmapError::NotAParent(text.chars().take(64).collect()))?;
                    set.members.push((parent, Bits::parse(bits)?));
                }
            }
        }
        Ok(set)
    }

    /// Whether field `n` is in the set as a whole.
    pub fn contains(&self, n: usize) -> bool {
        self.whole.contains(n)
    }

    /// Whether member `m` of the compound field `n` is in the set, by itself or with the whole.
    pub fn contains_member(&self, n: usize, m: usize) -> bool {
        self.contains(n) || self.members.iter().any(|(parent, bits)| *parent == n && bits.contains(m))
    }

    /// Whether any part of field `n` is in the set.
    pub fn touches(&self, n: usize) -> bool {
        self.contains(n) || self.members.iter().any(|(parent, bits)| *parent == n && !bits.is_empty())
    }

    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.members.iter().all(|(_, bits)| bits.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str) -> Vec<usize> {
        let set = FieldSet::parse(&[text]).unwrap();
        (0..400).filter(|n| set.contains(*n)).collect()
    }

    #[test]
    fn bits_count_from_the_last_byte() {
        for (text, bits) in [
            ("0x400800", vec![11, 22]),
            ("0x08F81000", vec![12, 19, 20, 21, 22, 23, 27]),
            ("0x01", vec![0]),
            ("0x80", vec![7]),
            ("0x0100", vec![8]),
            ("0x06", vec![1, 2]),
            ("0x801010", vec![4, 12, 23]),
            ("0x4000000000000000800000", vec![23, 86]),
            ("0x010000000200801008", vec![3, 12, 23, 33, 64]),
            // Lower case, an odd number of digits, and leading zeros are taken too.
            ("0x40080a", vec![1, 3, 11, 22]),
            ("0x108", vec![3, 8]),
            ("0x00000001", vec![0]),
            ("0x", vec![]),
        ] {
            assert_eq!(whole(text), bits, "{text}");
        }
    }

    #[test]
    fn members_do_not_set_their_compound() {
        let set = FieldSet::parse(&["0x400000", "4-0x01"]).unwrap();
        assert!(set.contains(22) && !set.contains(4) && set.contains_member(4, 0) && !set.contains_member(4, 1));
        assert!(set.touches(4) && set.touches(22) && !set.touches(5));
        // A list without the part for the whole.
        let set = FieldSet::parse(&["6-0x0180"]).unwrap();
        let members: Vec<_> = (0..20).filter(|m| set.contains_member(6, *m)).collect();
        assert_eq!(members, [7, 8]);
        assert!(!set.is_empty());
        // A compound's own bit stands for all of its members.
        let set = FieldSet::parse(&["0x10"]).unwrap();
        assert!(set.contains_member(4, 0) && set.contains_member(4, 9));
        assert!(FieldSet::parse::<&str>(&[]).unwrap().is_empty());
    }

    #[test]
    fn what_is_not_a_bitmap_is_refused() {
        for bad in ["", "10", "0xZZ", "x-0x01", "4-", "4-01", "-0x01", "0x1é"] {
            assert!(FieldSet::parse(&[bad]).is_err(), "{bad}");
        }
        assert_eq!(FieldSet::parse(&[format!("0x{}", "0".repeat(5000))]), Err(BitmapError::TooLong(5000)));
    }
}
