//! Record ids: 15 case-sensitive characters, and the 18-character form whose three checksum characters carry the case.
//!
//! The store keeps and compares the 18-character form alone; both forms are taken in.

use smol_str::SmolStr;

use crate::error::{Error, Kind, Result};

/// The characters of a record id in their order, which is also the order of ids made one after another.
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const CHECKSUM: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ012345";
/// The instance part of the ids that this org gives, between the key prefix and the sequence.
const INSTANCE: &str = "Sb0";

/// The three checksum characters of the first fifteen characters of `id`.
fn checksum(id: &[u8]) -> [char; 3] {
    let mut result = ['A'; 3];
    for (chunk, out) in id.chunks(5).zip(result.iter_mut()) {
        let bits = chunk
            .iter()
            .enumerate()
            .filter(|(_, c)| c.is_ascii_uppercase())
            .fold(0_usize, |bits, (j, _)| bits | 1 << j);
        *out = char::from(CHECKSUM[bits & 31]);
    }
    result
}

/// The 18-character form of an id of 15 or 18 characters; `None` when it is not a well-formed id.
pub(crate) fn normalise(id: &str) -> Option<SmolStr> {
    let bytes = id.as_bytes();
    if !(bytes.len() == 15 || bytes.len() == 18) || !bytes.iter().all(u8::is_ascii_alphanumeric) {
        return None;
    }
    let (stem, given) = id.split_at(15);
    let mut full = String::from(stem);
    full.extend(checksum(stem.as_bytes()));
    if given.is_empty() || full.ends_with(given) { Some(full.into()) } else { None }
}

/// The 18-character id of `sequence` among the records with `prefix`.
pub(crate) fn make(prefix: &str, sequence: u64) -> SmolStr {
    let mut tail = [b'0'; 9];
    let mut rest = sequence;
    for slot in tail.iter_mut().rev() {
        *slot = DIGITS[(rest % 62) as usize];
        rest /= 62;
    }
    let mut stem = String::with_capacity(18);
    stem.push_str(prefix);
    stem.push_str(INSTANCE);
    stem.extend(tail.iter().map(|&b| char::from(b)));
    let check = checksum(stem.as_bytes());
    stem.extend(check);
    stem.into()
}

/// An id for an org that nobody has seen before.
pub fn random_org_id() -> Result<String> {
    let mut random = [0; 8];
    aws_lc_rs::rand::fill(&mut random)
        .map_err(|_| Error::new(Kind::Internal, "the system gives no random numbers, so the org gets no id"))?;
    Ok(make("00D", u64::from_le_bytes(random)).into())
}

/// The id without its checksum, as error messages show it.
pub(crate) fn short(id: &str) -> &str {
    id.get(..15).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_ids_have_their_checksums() {
        for (short, full) in [
            ("001000000000001", "001000000000001AAA"),
            ("00D000000000001", "00D000000000001EAA"),
            ("00NDp00000BbvCY", "00NDp00000BbvCYMAZ"),
            ("aBcDeFgHiJkLmNo", "aBcDeFgHiJkLmNoKVK"),
            ("ZZZZZZZZZZZZZZZ", "ZZZZZZZZZZZZZZZ555"),
        ] {
            assert_eq!(normalise(short).as_deref(), Some(full));
            assert_eq!(normalise(full).as_deref(), Some(full));
        }
    }

    #[test]
    fn malformed_ids_are_refused() {
        for bad in ["", "001", "001000000000001AAB", "00100000000000_", "0010000000000010"] {
            assert_eq!(normalise(bad), None, "{bad}");
        }
    }

    #[test]
    fn made_ids_are_well_formed_and_ordered() {
        let (a, b) = (make("001", 61), make("001", 62));
        assert!(a < b);
        assert_eq!(normalise(&a).as_ref(), Some(&a));
        assert_eq!(a.len(), 18);
    }
}
