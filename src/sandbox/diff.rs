//! Long texts as differences: a unified diff without context, led by the hash of the new text.

use std::fmt::Write as _;

use aws_lc_rs::digest;

/// Texts shorter than this are told whole.
const SHORTEST: usize = 1000;

/// The difference that turns `old` into `new`; `None` when the new text is told whole: it is short, its length differs
/// by more than half, more than a quarter of its lines changed, or the difference is no shorter.
pub(crate) fn unified(old: &str, new: &str) -> Option<String> {
    if new.chars().count() < SHORTEST || old.len().abs_diff(new.len()) * 2 > old.len().max(1) {
        return None;
    }
    let (before, after): (Vec<&str>, Vec<&str>) = (old.split('\n').collect(), new.split('\n').collect());
    let head = before.iter().zip(&after).take_while(|(a, b)| a == b).count();
    let shorter = before.len().min(after.len());
    let tail = before.iter().rev().zip(after.iter().rev()).take(shorter - head).take_while(|(a, b)| a == b).count();
    let (removed, added) = (before.get(head..before.len() - tail)?, after.get(head..after.len() - tail)?);
    if removed.len().max(added.len()) * 4 > before.len().max(after.len()) {
        return None;
    }
    let mut text = String::from("--- \n+++ ");
    for byte in digest::digest(&digest::SHA256, new.as_bytes()).as_ref() {
        // Writing to a String cannot fail.
        write!(text, "{byte:02x}").ok();
    }
    let start = |lines: &[&str]| if lines.is_empty() { head } else { head + 1 };
    write!(text, "\n@@ -{},{} +{},{} @@", start(removed), removed.len(), start(added), added.len()).ok();
    for (sign, lines) in [("\n-", removed), ("\n+", added)] {
        for line in lines {
            text.extend([sign, line]);
        }
    }
    (text.len() < new.len()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("line {i} of a text that is long enough to be told as a difference")).collect()
    }

    #[test]
    fn one_changed_line_is_one_hunk() {
        let old = lines(40);
        let mut new = old.clone();
        new[10] = "changed".to_owned();
        let diff = unified(&old.join("\n"), &new.join("\n")).unwrap();
        let mut parts = diff.lines();
        assert_eq!(parts.next(), Some("--- "));
        assert!(parts.next().is_some_and(|line| line.starts_with("+++ ") && line.len() == 68));
        assert_eq!(parts.next(), Some("@@ -11,1 +11,1 @@"));
        assert_eq!(parts.next(), Some(format!("-{}", old[10]).as_str()));
        assert_eq!(parts.next(), Some("+changed"));
    }

    #[test]
    fn added_lines_and_texts_told_whole() {
        let old = lines(40);
        let mut new = old.clone();
        new.insert(5, "one more".to_owned());
        let diff = unified(&old.join("\n"), &new.join("\n")).unwrap();
        assert!(diff.contains("@@ -5,0 +6,1 @@\n+one more"), "{diff}");
        assert_eq!(unified("short", "texts"), None);
        assert_eq!(unified(&old.join("\n"), &lines(80).join("\n")), None);
        assert_eq!(unified(&old.join("\n"), &old.join("\n").replace("line", "LINE")), None);
    }
}
