//! What the org says no with: a code, a message, the fields concerned, and the HTTP status of a single request.

use std::fmt::Write as _;

use super::value::write_string;

/// A refusal of a request or of one record in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) fields: Vec<String>,
    /// The body could not be read as the objects that it should hold, so that no record of it is looked at.
    pub(crate) unreadable: bool,
}

impl Refusal {
    /// A refusal with status 400.
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { status: 400, code, message: message.into(), fields: Vec::new(), unreadable: false }
    }

    /// The same refusal with another HTTP status.
    pub(crate) fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// The same refusal, said of `field`.
    pub(crate) fn field(mut self, field: &str) -> Self {
        self.fields.push(field.to_owned());
        self
    }

    /// A JSON value of the wrong type.
    pub(crate) fn unreadable(message: impl Into<String>) -> Self {
        Self { unreadable: true, ..Self::new("JSON_PARSER_ERROR", message) }
    }

    /// Nothing there.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new("NOT_FOUND", message).status(404)
    }

    /// An object that the org does not have.
    pub(crate) fn no_object(name: &str) -> Self {
        Self::new(
            "INVALID_TYPE",
            format!(
                "sObject type '{name}' is not supported. If you are attempting to use a custom object, be sure to append \
                 the '__c' after the entity name."
            ),
        )
    }

    /// A field that the object does not have.
    pub(crate) fn no_field(field: &str, object: &str) -> Self {
        Self::new("INVALID_FIELD", format!("No such column '{field}' on sobject of type {object}"))
    }

    /// Appends it as the element of an error array; `key` is `errorCode` or, inside a list of results, `statusCode`.
    pub(crate) fn write(&self, key: &str, out: &mut String) {
        out.push_str("{\"message\":");
        write_string(&self.message, out);
        // Writing to a String cannot fail.
        write!(out, ",\"{key}\":\"{}\"", self.code).ok();
        if key == "statusCode" || !self.fields.is_empty() {
            out.push_str(",\"fields\":[");
            for (i, field) in self.fields.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_string(field, out);
            }
            out.push(']');
        }
        out.push('}');
    }

    /// The body of a request that is refused as a whole.
    pub(crate) fn body(&self) -> String {
        let mut out = String::from("[");
        self.write("errorCode", &mut out);
        out.push(']');
        out
    }
}
