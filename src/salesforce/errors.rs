//! What Salesforce's error codes mean for whoever sent the request.
//!
//! The table goes by code first, since the HTTP status of most codes is not documented and differs between endpoints; then by
//! the few texts that split a code in two; and by status only where there is no code (the edge answers with HTML or nothing).
//! A code that is not in the table is [`Class::Unknown`]: it is tried again within the sender's budget and is final after that.

use super::id18;

/// What an error asks for. One error of one record, or of a whole call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// The token is no longer good: get another and send again, once.
    Reauthenticate,
    /// The server is in trouble or busy: send the same again with backoff, within a budget. The effect of a write is unknown.
    Backoff,
    /// Another transaction holds the record: send it again shortly, with jitter.
    Locked,
    /// An allocation, a storage limit or a maintenance window: wait, and tell a person.
    WaitForLimit,
    /// Too many requests at the same moment: wait a little.
    WaitForConcurrency,
    /// The request is too large or takes too long: send fewer records, or ask for a smaller range.
    Shrink,
    /// The query's pages are gone: begin the query again after the last row that was read.
    RestartQuery,
    /// The record is deleted. For a delete that is success.
    Gone,
    /// There is no such record. For a delete that is success.
    Missing,
    /// Something that the record points to is not there (yet): try again after it, then it is final.
    Dependency,
    /// The value of a unique field is taken: the message may name the record that has it.
    Duplicate,
    /// A duplicate rule objects: send again with leave to save, or give the record up.
    DuplicateRule,
    /// The record was changed since it was looked at.
    Conflict,
    /// Nothing is wrong with this record; another of the same call failed.
    Innocent,
    /// The request does not fit the org's schema, or is no good JSON: isolate the record, describe the object again.
    Schema,
    /// The record or its values are not acceptable. Sending the same again does not mend it.
    RowFinal,
    /// The org, the connected app or the user is not set up for what we do. A person must change it.
    HaltConfiguration,
    /// Not in the table.
    Unknown,
}

impl Class {
    /// Whether sending the same again can succeed without anybody changing anything.
    pub const fn is_transient(self) -> bool {
        matches!(
            self,
            Self::Reauthenticate
                | Self::Backoff
                | Self::Locked
                | Self::WaitForLimit
                | Self::WaitForConcurrency
                | Self::Dependency
                | Self::Innocent
                | Self::Unknown
        )
    }
}

/// Codes with one meaning, by class. Those that a text splits are in [`by_text`].
const TABLE: &[(Class, &[&str])] = &[
    (Class::Reauthenticate, &["INVALID_SESSION_ID"]),
    (
        Class::Backoff,
        &[
            "SERVER_UNAVAILABLE",
            "SERVICE_UNAVAILABLE",
            "UNKNOWN_EXCEPTION",
            "INTERNAL_ERROR",
            "RECORD_IN_USE_BY_WORKFLOW",
        ],
    ),
    (Class::Locked, &["UNABLE_TO_LOCK_ROW", "UNABLE_TO_LOCK_RECORD", "RECORD_LOCKED"]),
    (
        Class::WaitForLimit,
        &[
            "REQUEST_LIMIT_EXCEEDED",
            "API_CURRENTLY_DISABLED",
            "INSERT_UPDATE_DELETE_NOT_ALLOWED_DURING_MAINTENANCE",
            "STORAGE_LIMIT_EXCEEDED",
            "LIMIT_EXCEEDED",
            "TOO_MANY_APEX_REQUESTS",
        ],
    ),
    (Class::Shrink, &["QUERY_TIMEOUT", "REQUEST_RUNNING_TOO_LONG", "OPERATION_TOO_LARGE", "EXCEEDED_ID_LIMIT"]),
    (Class::RestartQuery, &["INVALID_QUERY_LOCATOR", "INVALID_ID_FIELD"]),
    (Class::Gone, &["ENTITY_IS_DELETED"]),
    (Class::Missing, &["NOT_FOUND"]),
    (Class::Dependency, &["INVALID_CROSS_REFERENCE_KEY", "FIELD_INTEGRITY_EXCEPTION"]),
    (Class::Duplicate, &["DUPLICATE_VALUE", "DUPLICATE_EXTERNAL_ID"]),
    (Class::DuplicateRule, &["DUPLICATES_DETECTED"]),
    (Class::Conflict, &["ENTITY_FAILED_IFLASTMODIFIED_ON_UPDATE"]),
    (Class::Innocent, &["ALL_OR_NONE_OPERATION_ROLLED_BACK", "PROCESSING_HALTED", "FAILED_DUE_TO_OTHER_INPUTS"]),
    (
        Class::Schema,
        &[
            "MALFORMED_ID",
            "MALFORMED_QUERY",
            "INVALID_FIELD",
            "INVALID_TYPE",
            "JSON_PARSER_ERROR",
            "METHOD_NOT_ALLOWED",
            "UNSUPPORTED_MEDIA_TYPE",
            "INVALID_OPERATION",
        ],
    ),
    (
        Class::RowFinal,
        &[
            "INSUFFICIENT_ACCESS",
            "INSUFFICIENT_ACCESS_OR_READONLY",
            "INSUFFICIENT_ACCESS_ON_CROSS_REFERENCE_ENTITY",
            "CANNOT_INSERT_UPDATE_ACTIVATE_ENTITY",
            "ENTITY_IS_LOCKED",
            // Leaving the read-only field out would answer "done" for a value that was never written.
            "INVALID_FIELD_FOR_INSERT_UPDATE",
            "INVALID_TYPE_ON_FIELD_IN_RECORD",
            "NUMBER_OUTSIDE_VALID_RANGE",
            "DATE_OUT_OF_RANGE",
            "STRING_TOO_LONG",
            "INVALID_EMAIL_ADDRESS",
            "INVALID_OR_NULL_FOR_RESTRICTED_PICKLIST",
            "TEXT_DATA_OUTSIDE_SUPPORTED_CHARSET",
            "REQUIRED_FIELD_MISSING",
            "MISSING_ARGUMENT",
            "FIELD_CUSTOM_VALIDATION_EXCEPTION",
            "FIELD_FILTER_VALIDATION_EXCEPTION",
            "DELETE_FAILED",
            "DEPENDENCY_EXISTS",
            "DELETE_REQUIRED_ON_CASCADE",
            "CANNOT_REPARENT_RECORD",
            "SELF_REFERENCE_FROM_TRIGGER",
            "MIXED_DML_OPERATION",
            "CIRCULAR_DEPENDENCY",
            "INVALID_CURRENCY_ISO",
            "INACTIVE_OWNER_OR_USER",
            "INVALID_OWNER",
            "TRANSFER_REQUIRES_READ",
        ],
    ),
    (Class::HaltConfiguration, &["INVALID_AUTH_HEADER", "API_DISABLED_FOR_ORG", "UNSUPPORTED_API_VERSION"]),
];

/// The class of an error. `code` is `errorCode` of a whole answer or `statusCode` of one record, empty or `HTTP_<status>` where there is none;
/// `status` is the HTTP status of the call, and is looked at only where the code is empty.
pub fn classify(status: u16, code: &str, message: &str) -> Class {
    if code.is_empty() || code.starts_with("HTTP_") {
        return by_status(status);
    }
    if let Some(class) = by_text(code, message) {
        return class;
    }
    if code.starts_with("TXN_SECURITY_") {
        return Class::WaitForLimit;
    }
    TABLE.iter().find(|(_, codes)| codes.contains(&code)).map_or(Class::Unknown, |(class, _)| *class)
}

/// Codes that mean one thing or another by their text.
fn by_text(code: &str, message: &str) -> Option<Class> {
    let says = |text: &str| contains_ignoring_case(message, text);
    match code {
        "INVALID_SESSION_ID" if says("not valid for use with the REST API") => Some(Class::HaltConfiguration),
        "REQUEST_LIMIT_EXCEEDED" if says("Concurrent") => Some(Class::WaitForConcurrency),
        "NOT_FOUND" if says("external ID field") => Some(Class::HaltConfiguration),
        "INVALID_FIELD" if says("Foreign key external ID") && says("not found") => Some(Class::Dependency),
        "FIELD_INTEGRITY_EXCEPTION" if says("incorrect type") => Some(Class::RowFinal),
        _ => None,
    }
}

/// The class where there is no code to go by.
const fn by_status(status: u16) -> Class {
    match status {
        401 => Class::Reauthenticate,
        403 | 405 | 406 | 415 => Class::HaltConfiguration,
        404 => Class::Missing,
        410 => Class::Gone,
        412 => Class::Conflict,
        413 | 414 | 431 => Class::Shrink,
        429 => Class::WaitForConcurrency,
        // 420 is the edge that cannot route, 428 that it wants another try, 408 that it gave up waiting for us.
        408 | 420 | 428 | 500..=599 => Class::Backoff,
        _ => Class::Unknown,
    }
}

fn contains_ignoring_case(text: &str, part: &str) -> bool {
    text.as_bytes().windows(part.len()).any(|window| window.eq_ignore_ascii_case(part.as_bytes()))
}

/// The first text in `message` that has the form of a record id, 15 or 18 letters and digits, with a checksum that holds
/// where there is one.
pub fn record_id_in(message: &str) -> Option<&str> {
    message
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| matches!(word.len(), 15 | 18))
        // A key prefix has a digit within the first three; no English word of this length does.
        .filter(|word| {
            word.bytes().take(3).any(|b| b.is_ascii_digit()) && word.bytes().skip(3).any(|b| b.is_ascii_digit())
        })
        .find(|word| word.len() == 15 || word.get(..15).is_some_and(|short| id18(short).as_str() == *word))
}

/// The field whose value is taken, from `duplicate value found: <field> duplicates value on record with id: <id>`.
pub fn duplicate_field(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once("duplicate value found: ")?;
    let (field, _) = rest.split_once(" duplicates value")?;
    let field = field.trim();
    (!field.is_empty() && !field.contains(char::is_whitespace)).then_some(field)
}

/// The column that does not exist, from `No such column '<field>' on sobject of type <sobject>`.
pub fn missing_column(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once("No such column '")?;
    rest.split_once('\'').map(|(field, _)| field)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every code that the documentation of errors lists for REST, with the text that matters, and what is done about it.
    const EXPECTED: &[(&str, &str, Class)] = &[
        ("INVALID_SESSION_ID", "Session expired or invalid", Class::Reauthenticate),
        ("INVALID_SESSION_ID", "This session is not valid for use with the REST API", Class::HaltConfiguration),
        ("INVALID_AUTH_HEADER", "INVALID_HEADER_TYPE", Class::HaltConfiguration),
        ("REQUEST_LIMIT_EXCEEDED", "TotalRequests Limit exceeded.", Class::WaitForLimit),
        (
            "REQUEST_LIMIT_EXCEEDED",
            "ConcurrentRequests (Concurrent API Requests) Limit exceeded.",
            Class::WaitForConcurrency,
        ),
        ("REQUEST_LIMIT_EXCEEDED", "ConcurrentPerOrgLongTxn Limit exceeded.", Class::WaitForConcurrency),
        ("API_DISABLED_FOR_ORG", "API is not enabled for this Organization or Partner", Class::HaltConfiguration),
        ("API_CURRENTLY_DISABLED", "API is currently disabled", Class::WaitForLimit),
        ("INSUFFICIENT_ACCESS", "", Class::RowFinal),
        ("INSUFFICIENT_ACCESS_OR_READONLY", "insufficient access rights on object id", Class::RowFinal),
        ("INSUFFICIENT_ACCESS_ON_CROSS_REFERENCE_ENTITY", "", Class::RowFinal),
        ("CANNOT_INSERT_UPDATE_ACTIVATE_ENTITY", "AccountTrigger: execution of BeforeInsert", Class::RowFinal),
        ("SERVER_UNAVAILABLE", "", Class::Backoff),
        ("SERVICE_UNAVAILABLE", "", Class::Backoff),
        ("UNKNOWN_EXCEPTION", "An unexpected error occurred. ErrorId: 12345-6789 (-1234)", Class::Backoff),
        ("INTERNAL_ERROR", "", Class::Backoff),
        ("UNABLE_TO_LOCK_ROW", "unable to obtain exclusive access to this record", Class::Locked),
        ("UNABLE_TO_LOCK_RECORD", "", Class::Locked),
        ("RECORD_LOCKED", "", Class::Locked),
        ("ENTITY_IS_LOCKED", "the entity is locked for editing", Class::RowFinal),
        ("TXN_SECURITY_METERING_ERROR", "", Class::WaitForLimit),
        ("TXN_SECURITY_RUNTIME_EXCEPTION", "", Class::WaitForLimit),
        ("INSERT_UPDATE_DELETE_NOT_ALLOWED_DURING_MAINTENANCE", "", Class::WaitForLimit),
        ("QUERY_TIMEOUT", "Your query request was running for too long.", Class::Shrink),
        ("REQUEST_RUNNING_TOO_LONG", "Your request was running for too long, and has been stopped.", Class::Shrink),
        ("OPERATION_TOO_LARGE", "", Class::Shrink),
        ("EXCEEDED_ID_LIMIT", "", Class::Shrink),
        ("INVALID_QUERY_LOCATOR", "invalid query locator", Class::RestartQuery),
        ("INVALID_ID_FIELD", "", Class::RestartQuery),
        ("ENTITY_IS_DELETED", "entity is deleted", Class::Gone),
        ("NOT_FOUND", "The requested resource does not exist", Class::Missing),
        (
            "NOT_FOUND",
            "Provided external ID field does not exist or is not accessible: Key__c",
            Class::HaltConfiguration,
        ),
        ("MALFORMED_ID", "bad id 5", Class::Schema),
        ("MALFORMED_QUERY", "unexpected token: FORM", Class::Schema),
        ("INVALID_FIELD", "No such column 'Nope__c' on sobject of type Account", Class::Schema),
        (
            "INVALID_FIELD",
            "Foreign key external ID: k1 not found for field Key__c in entity Account",
            Class::Dependency,
        ),
        ("INVALID_TYPE", "sObject type 'X' is not supported.", Class::Schema),
        ("JSON_PARSER_ERROR", "Unexpected character", Class::Schema),
        ("METHOD_NOT_ALLOWED", "", Class::Schema),
        ("UNSUPPORTED_MEDIA_TYPE", "", Class::Schema),
        ("INVALID_OPERATION", "", Class::Schema),
        ("INVALID_FIELD_FOR_INSERT_UPDATE", "Unable to create/update fields: Name.", Class::RowFinal),
        ("INVALID_TYPE_ON_FIELD_IN_RECORD", "", Class::RowFinal),
        ("NUMBER_OUTSIDE_VALID_RANGE", "", Class::RowFinal),
        ("DATE_OUT_OF_RANGE", "", Class::RowFinal),
        ("STRING_TOO_LONG", "", Class::RowFinal),
        ("INVALID_EMAIL_ADDRESS", "", Class::RowFinal),
        ("INVALID_OR_NULL_FOR_RESTRICTED_PICKLIST", "", Class::RowFinal),
        ("TEXT_DATA_OUTSIDE_SUPPORTED_CHARSET", "", Class::RowFinal),
        ("REQUIRED_FIELD_MISSING", "Required fields are missing: [Name]", Class::RowFinal),
        ("FIELD_CUSTOM_VALIDATION_EXCEPTION", "Amount must be positive", Class::RowFinal),
        ("FIELD_FILTER_VALIDATION_EXCEPTION", "", Class::RowFinal),
        ("FIELD_INTEGRITY_EXCEPTION", "There's a problem with this state", Class::Dependency),
        ("FIELD_INTEGRITY_EXCEPTION", "Account ID: id value of incorrect type: 003000000000001", Class::RowFinal),
        ("INVALID_CROSS_REFERENCE_KEY", "invalid cross reference id", Class::Dependency),
        ("DUPLICATE_VALUE", "duplicate value found: Key__c duplicates value on record with id: 001", Class::Duplicate),
        ("DUPLICATE_EXTERNAL_ID", "", Class::Duplicate),
        ("DUPLICATES_DETECTED", "Use one of these records?", Class::DuplicateRule),
        ("DELETE_FAILED", "", Class::RowFinal),
        ("DEPENDENCY_EXISTS", "", Class::RowFinal),
        ("DELETE_REQUIRED_ON_CASCADE", "", Class::RowFinal),
        ("CANNOT_REPARENT_RECORD", "", Class::RowFinal),
        ("ALL_OR_NONE_OPERATION_ROLLED_BACK", "", Class::Innocent),
        ("PROCESSING_HALTED", "", Class::Innocent),
        ("FAILED_DUE_TO_OTHER_INPUTS", "", Class::Innocent),
        ("STORAGE_LIMIT_EXCEEDED", "", Class::WaitForLimit),
        ("LIMIT_EXCEEDED", "", Class::WaitForLimit),
        ("TOO_MANY_APEX_REQUESTS", "", Class::WaitForLimit),
        ("ENTITY_FAILED_IFLASTMODIFIED_ON_UPDATE", "", Class::Conflict),
        ("SELF_REFERENCE_FROM_TRIGGER", "", Class::RowFinal),
        ("MIXED_DML_OPERATION", "", Class::RowFinal),
        ("CIRCULAR_DEPENDENCY", "", Class::RowFinal),
        ("INVALID_CURRENCY_ISO", "", Class::RowFinal),
        ("INACTIVE_OWNER_OR_USER", "", Class::RowFinal),
        ("INVALID_OWNER", "", Class::RowFinal),
        ("TRANSFER_REQUIRES_READ", "", Class::RowFinal),
        ("RECORD_IN_USE_BY_WORKFLOW", "", Class::Backoff),
        ("SOMETHING_THAT_CAME_LATER", "", Class::Unknown),
    ];

    #[test]
    fn every_documented_code_has_its_class_whatever_the_status() {
        for (code, message, class) in EXPECTED {
            for status in [200, 400, 403, 404, 500] {
                assert_eq!(classify(status, code, message), *class, "{code} {message}");
            }
        }
    }

    #[test]
    fn no_code_is_in_the_table_twice_or_untested() {
        let mut codes: Vec<&str> = TABLE.iter().flat_map(|(_, codes)| codes.iter().copied()).collect();
        codes.sort_unstable();
        let count = codes.len();
        codes.dedup();
        assert_eq!(codes.len(), count);
        for code in codes {
            let known = EXPECTED.iter().any(|(c, _, _)| *c == code)
                || ["MISSING_ARGUMENT", "UNSUPPORTED_API_VERSION"].contains(&code);
            assert!(known, "{code}");
        }
    }

    #[test]
    fn without_a_code_the_status_decides() {
        for (status, class) in [
            (401, Class::Reauthenticate),
            (403, Class::HaltConfiguration),
            (404, Class::Missing),
            (408, Class::Backoff),
            (412, Class::Conflict),
            (413, Class::Shrink),
            (414, Class::Shrink),
            (420, Class::Backoff),
            (429, Class::WaitForConcurrency),
            (431, Class::Shrink),
            (500, Class::Backoff),
            (502, Class::Backoff),
            (503, Class::Backoff),
            (400, Class::Unknown),
            (0, Class::Unknown),
        ] {
            assert_eq!(classify(status, "", "<html>"), class, "{status}");
            assert_eq!(classify(status, &format!("HTTP_{status}"), "<html>"), class, "{status}");
        }
    }

    #[test]
    fn texts_are_found_in_any_case_and_never_break_on_foreign_letters() {
        assert_eq!(
            classify(400, "INVALID_FIELD", "foreign key EXTERNAL id: Zoë not found for field Key__c"),
            Class::Dependency
        );
        assert_eq!(classify(403, "REQUEST_LIMIT_EXCEEDED", "é"), Class::WaitForLimit);
        assert_eq!(classify(403, "REQUEST_LIMIT_EXCEEDED", ""), Class::WaitForLimit);
    }

    #[test]
    fn ids_in_messages_are_found_and_words_are_not() {
        let message = "duplicate value found: Key__c duplicates value on record with id: 00NDp00000BbvCY";
        assert_eq!(record_id_in(message), Some("00NDp00000BbvCY"));
        assert_eq!(record_id_in("on record 001000000000001AAA."), Some("001000000000001AAA"));
        assert_eq!(record_id_in("a wrong checksum: 001000000000001AAB"), None);
        assert_eq!(record_id_in("responsibilities of internationalised understanding"), None);
        assert_eq!(record_id_in("<unknown>"), None);
        assert_eq!(duplicate_field(message), Some("Key__c"));
        assert_eq!(duplicate_field("duplicate value found: <unknown>"), None);
        assert_eq!(missing_column("No such column 'Nope__c' on sobject of type Account"), Some("Nope__c"));
        assert_eq!(missing_column("No such column"), None);
    }
}
