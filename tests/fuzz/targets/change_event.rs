//! Any payload is a change event of its schema or an error, its bitmaps included.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tidelock::salesforce::avro::EventSchema;
use tidelock::salesforce::bitmap::FieldSet;

const SCHEMA: &str = r#"{"type":"record","name":"ContactChangeEvent","fields":[
 {"name":"ChangeEventHeader","type":{"type":"record","name":"ChangeEventHeader","fields":[
  {"name":"entityName","type":"string"},{"name":"recordIds","type":{"type":"array","items":"string"}},
  {"name":"changeType","type":{"type":"enum","name":"ChangeType","symbols":["CREATE","UPDATE","DELETE","UNDELETE",
   "GAP_CREATE","GAP_UPDATE","GAP_DELETE","GAP_UNDELETE","GAP_OVERFLOW"]}},
  {"name":"changeOrigin","type":"string"},{"name":"transactionKey","type":"string"},{"name":"sequenceNumber","type":"int"},
  {"name":"commitTimestamp","type":"long"},{"name":"commitNumber","type":"long"},{"name":"commitUser","type":"string"},
  {"name":"nulledFields","type":{"type":"array","items":"string"}},{"name":"diffFields","type":{"type":"array","items":"string"}},
  {"name":"changedFields","type":{"type":"array","items":"string"}}]}},
 {"name":"Name","type":["null","string",{"name":"Switchable_PersonName","type":"record","fields":[
  {"name":"FirstName","type":["null","string"],"default":null},{"name":"LastName","type":["null","string"],"default":null}]}],
  "default":null},
 {"name":"MailingAddress","type":["null",{"type":"record","name":"Address","fields":[
  {"name":"City","type":["null","string"],"default":null},{"name":"Latitude","type":["null","double"],"default":null}]}],
  "default":null},
 {"name":"OtherAddress","type":["null","Address"],"default":null},
 {"name":"HasOptedOutOfEmail","type":["null","boolean"],"default":null},
 {"name":"Level","type":["null","int"],"default":null},{"name":"CreatedDate","type":["null","long"],"default":null}]}"#;

static EVENTS: LazyLock<Option<EventSchema>> = LazyLock::new(|| EventSchema::parse(SCHEMA).ok());

fuzz_target!(|data: &[u8]| {
    let schema = EVENTS.as_ref().unwrap_or_else(|| panic!("the schema is sound"));
    if let Ok(opened) = schema.open(data)
        && let Ok((header, values)) = opened.body(|n| n % 2 == 1)
    {
        assert_eq!(values.len(), schema.fields().len());
        if let Ok(changed) = FieldSet::parse(&header.changed_fields) {
            let _touched = (0..values.len()).filter(|n| changed.touches(*n) || changed.contains_member(*n, 1)).count();
        }
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _bits = FieldSet::parse(&text.split(',').collect::<Vec<_>>());
    }
});
