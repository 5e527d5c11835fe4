//! What the server says in `ErrorResponse` and `NoticeResponse`.

use super::frame::WireError;

/// A server's error or notice.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerError {
    /// `ERROR`, `FATAL`, `PANIC`, or a notice's severity; never translated.
    pub severity: String,
    /// The SQLSTATE.
    pub code: String,
    /// The primary message.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
}

impl ServerError {
    /// Reads the body: fields of a type byte and NUL-terminated text, ended by a zero byte. Unknown fields are allowed by
    /// the protocol and passed over.
    pub fn parse(body: &[u8]) -> Result<Self, WireError> {
        const BAD: WireError = WireError::Malformed("error message");
        let mut error = Self::default();
        let mut rest = body;
        loop {
            let (field, after) = rest.split_first().ok_or(BAD)?;
            if *field == 0 {
                return Ok(error);
            }
            let end = after.iter().position(|b| *b == 0).ok_or(BAD)?;
            let (text, after) = after.split_at_checked(end).ok_or(BAD)?;
            rest = after.get(1..).ok_or(BAD)?;
            // Before the encoding is agreed on, messages may come in any.
            let text = String::from_utf8_lossy(text).into_owned();
            match field {
                b'V' => error.severity = text,
                b'S' if error.severity.is_empty() => error.severity = text,
                b'C' => error.code = text,
                b'M' => error.message = text,
                b'D' => error.detail = Some(text),
                b'H' => error.hint = Some(text),
                _ => {}
            }
        }
    }
}

impl std::fmt::Display for ServerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.code)?;
        if let Some(detail) = &self.detail {
            write!(f, "; {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ServerError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_and_cuts_are_errors() {
        let body = b"SFATAL\0VFATAL\0C28P01\0Mno\0Xwhat\0Hhint\0\0";
        let error = ServerError::parse(body).unwrap();
        assert_eq!((error.code.as_str(), error.message.as_str()), ("28P01", "no"));
        assert_eq!(error.to_string(), "no (SQLSTATE 28P01); hint");
        for cut in 0..body.len() {
            assert!(ServerError::parse(&body[..cut]).is_err());
        }
    }
}
