//! What objects and fields the org has, from `describe`.
//!
//! [`Describer`] keeps what it has been told, since a description of a wide object is a megabyte and changes seldom; whoever
//! learns of a change (an unknown schema id in the stream, a refused field) asks again with [`Describer::refresh`].

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use tokio::sync::Mutex;

use super::errors::{Class, classify};
use super::rest::{Rest, RestError, encode_segment};
use crate::error::{Error, Kind, Result};
use crate::mapping::{SobjectDescription, SobjectField, field_kind};

/// An object of the org, from the global description.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SobjectSummary {
    /// Its API name.
    pub name: String,
    /// Its label.
    #[serde(default)]
    pub label: String,
    /// The first three characters of its records' ids.
    #[serde(default)]
    pub key_prefix: Option<String>,
    /// Whether it was made in this org.
    #[serde(default)]
    pub custom: bool,
    /// Whether its records can be queried.
    #[serde(default)]
    pub queryable: bool,
    /// Whether records can be created.
    #[serde(default)]
    pub createable: bool,
    /// Whether records can be updated.
    #[serde(default)]
    pub updateable: bool,
    /// Whether records can be deleted.
    #[serde(default)]
    pub deletable: bool,
}

#[derive(Deserialize)]
struct Global {
    sobjects: Vec<SobjectSummary>,
}

/// Every object that the user may see.
pub async fn list_sobjects(rest: &Rest) -> Result<Vec<SobjectSummary>> {
    Ok(rest.get("sobjects", &[]).await.map_err(Error::from)?.json::<Global>()?.sobjects)
}

/// Describes one object; `None` if the org has no such object, or the user may not see it.
pub async fn describe(rest: &Rest, sobject: &str) -> Result<Option<SobjectDescription>> {
    let path = format!("sobjects/{}/describe", encode_segment(sobject));
    match rest.get(&path, &[]).await {
        Ok(answer) => parse(&answer.body).map(Some).map_err(|e| e.within(format!("the description of {sobject}"))),
        Err(RestError::Api(refused)) => match classify(refused.status, &refused.code, &refused.message) {
            Class::Missing => Ok(None),
            Class::Schema if refused.code == "INVALID_TYPE" => Ok(None),
            _ => Err(Error::from(refused).within(format!("describing {sobject}"))),
        },
        Err(RestError::Link(error)) => Err(error),
    }
}

/// Describes objects and remembers what it was told. Clones share one memory.
#[derive(Debug, Clone)]
pub struct Describer {
    rest: Rest,
    known: Arc<Mutex<BTreeMap<String, Arc<SobjectDescription>>>>,
}

impl Describer {
    /// A describer that knows nothing yet.
    pub fn new(rest: Rest) -> Self {
        Self { rest, known: Arc::default() }
    }

    /// What is known of `sobject`, or what the org tells now. `None` if there is no such object; that is not remembered.
    pub async fn describe(&self, sobject: &str) -> Result<Option<Arc<SobjectDescription>>> {
        if let Some(known) = self.known.lock().await.get(&sobject.to_ascii_lowercase()) {
            return Ok(Some(known.clone()));
        }
        self.refresh(sobject).await
    }

    /// What the org tells of `sobject` now.
    pub async fn refresh(&self, sobject: &str) -> Result<Option<Arc<SobjectDescription>>> {
        let told = describe(&self.rest, sobject).await?.map(Arc::new);
        let mut known = self.known.lock().await;
        match &told {
            Some(description) => known.insert(sobject.to_ascii_lowercase(), description.clone()),
            None => known.remove(&sobject.to_ascii_lowercase()),
        };
        Ok(told)
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawSobject {
    name: String,
    label: Option<String>,
    key_prefix: Option<String>,
    fields: Vec<RawField>,
    queryable: bool,
    createable: bool,
    updateable: bool,
    deletable: bool,
    undeletable: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawField {
    name: String,
    label: Option<String>,
    #[serde(rename = "type")]
    sf_type: String,
    length: Option<u32>,
    precision: Option<u32>,
    digits: Option<u32>,
    scale: Option<u32>,
    createable: bool,
    updateable: bool,
    nillable: bool,
    defaulted_on_create: bool,
    external_id: Option<bool>,
    unique: Option<bool>,
    id_lookup: Option<bool>,
    calculated: Option<bool>,
    auto_number: Option<bool>,
    restricted_picklist: Option<bool>,
    compound_field_name: Option<String>,
    reference_to: Option<Vec<String>>,
    relationship_name: Option<String>,
    picklist_values: Option<Vec<RawPicklist>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawPicklist {
    value: Option<String>,
    active: bool,
}

/// Reads the answer of `/sobjects/X/describe`.
pub fn parse(body: &[u8]) -> Result<SobjectDescription> {
    let raw: RawSobject = serde_json::from_slice(body).map_err(|e| {
        Error::new(Kind::Protocol, "Salesforce described an object in a form that is not the documented one")
            .caused_by(e)
    })?;
    if raw.name.is_empty() {
        return Err(Error::new(Kind::Protocol, "Salesforce described an object without its name"));
    }
    Ok(SobjectDescription {
        label: raw.label.unwrap_or_else(|| raw.name.clone()),
        key_prefix: raw.key_prefix,
        name: raw.name,
        fields: raw.fields.into_iter().map(field).collect(),
        queryable: raw.queryable,
        createable: raw.createable,
        updateable: raw.updateable,
        deletable: raw.deletable,
        undeletable: raw.undeletable,
    })
}

fn field(raw: RawField) -> SobjectField {
    let reference_to = raw.reference_to.unwrap_or_default();
    let kind = field_kind(&raw.sf_type, raw.length.unwrap_or_default(), raw.scale.unwrap_or_default(), &reference_to);
    let is_compound = matches!(raw.sf_type.as_str(), "address" | "location");
    SobjectField {
        kind,
        label: raw.label.unwrap_or_else(|| raw.name.clone()),
        // A field names itself as its compound in some versions.
        compound: raw.compound_field_name.filter(|compound| *compound != raw.name && !is_compound),
        name: raw.name,
        sf_type: raw.sf_type,
        length: raw.length.unwrap_or_default(),
        precision: raw.precision.filter(|p| *p > 0).or(raw.digits).unwrap_or_default(),
        scale: raw.scale.unwrap_or_default(),
        createable: raw.createable,
        updateable: raw.updateable,
        nillable: raw.nillable,
        defaulted_on_create: raw.defaulted_on_create,
        external_id: raw.external_id.unwrap_or_default(),
        unique: raw.unique.unwrap_or_default(),
        id_lookup: raw.id_lookup.unwrap_or_default(),
        calculated: raw.calculated.unwrap_or_default(),
        auto_number: raw.auto_number.unwrap_or_default(),
        restricted_picklist: raw.restricted_picklist.unwrap_or_default(),
        reference_to,
        relationship_name: raw.relationship_name,
        picklist: raw
            .picklist_values
            .unwrap_or_default()
            .into_iter()
            .filter(|entry| entry.active)
            .filter_map(|entry| entry.value)
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::FieldKind;
    use crate::salesforce::stub::{Stub, refusal};

    fn kind_of(json: &str) -> Option<FieldKind> {
        let body = format!(r#"{{"name":"X__c","fields":[{json}]}}"#);
        parse(body.as_bytes()).unwrap().fields.remove(0).kind
    }

    #[test]
    fn every_field_type_has_its_kind_or_none() {
        let text = FieldKind::Text { length: 80 };
        for (sf_type, kind) in [
            ("id", Some(FieldKind::Id)),
            ("reference", Some(FieldKind::Reference { to: vec!["Account".into()] })),
            ("string", Some(text.clone())),
            ("textarea", Some(text.clone())),
            ("email", Some(text.clone())),
            ("phone", Some(text.clone())),
            ("url", Some(text.clone())),
            ("encryptedstring", Some(text)),
            ("picklist", Some(FieldKind::Picklist)),
            ("combobox", Some(FieldKind::Text { length: 80 })),
            ("multipicklist", Some(FieldKind::MultiPicklist)),
            ("boolean", Some(FieldKind::Boolean)),
            ("int", Some(FieldKind::Integer)),
            ("long", Some(FieldKind::Integer)),
            ("double", Some(FieldKind::Number { scale: 2 })),
            ("currency", Some(FieldKind::Number { scale: 2 })),
            ("percent", Some(FieldKind::Number { scale: 2 })),
            ("date", Some(FieldKind::Date)),
            ("datetime", Some(FieldKind::DateTime)),
            ("time", Some(FieldKind::Time)),
            ("base64", None),
            ("address", None),
            ("location", None),
            ("complexvalue", None),
            ("anyType", None),
            ("datacategorygroupreference", None),
            ("json", None),
            ("aTypeThatCameLater", None),
        ] {
            let json = format!(
                r#"{{"name":"F","type":"{sf_type}","length":80,"precision":18,"scale":2,"referenceTo":["Account"]}}"#
            );
            assert_eq!(kind_of(&json), kind, "{sf_type}");
        }
    }

    #[test]
    fn nulls_and_gaps_in_a_description_are_taken() {
        let body = br#"{"name":"Contact","createable":true,"updateable":true,"deletable":true,"undeletable":true,"queryable":true,
            "childRelationships":[],"fields":[
            {"name":"MailingStreet","label":"Street","type":"textarea","length":255,"compoundFieldName":"MailingAddress",
             "createable":true,"updateable":true,"nillable":true,"externalId":false,"picklistValues":[],"referenceTo":[]},
            {"name":"MailingAddress","type":"address","compoundFieldName":null,"relationshipName":null,"referenceTo":null},
            {"name":"Level__c","type":"picklist","restrictedPicklist":true,"picklistValues":[
              {"value":"A","active":true},{"value":"B","active":false},{"value":null,"active":true}]},
            {"name":"Count__c","type":"int","digits":9,"precision":0}]}"#;
        let description = parse(body).unwrap();
        assert!(description.createable && description.undeletable && description.queryable);
        let [street, address, level, count] = description.fields.as_slice() else { panic!() };
        assert_eq!((street.compound.as_deref(), street.label.as_str()), (Some("MailingAddress"), "Street"));
        assert_eq!((address.compound.as_deref(), address.kind.as_ref()), (None, None));
        assert_eq!((level.picklist.as_slice(), level.restricted_picklist), (["A".to_owned()].as_slice(), true));
        assert_eq!(count.precision, 9);
        assert_eq!(parse(b"{}").unwrap_err().kind(), Kind::Protocol);
        assert_eq!(parse(b"<html>").unwrap_err().kind(), Kind::Protocol);
    }

    #[tokio::test]
    async fn descriptions_are_remembered_until_refreshed() {
        let stub = Stub::start(|asked| match asked.path.as_str() {
            "sobjects/Account/describe" => (200, r#"{"name":"Account","keyPrefix":"001","fields":[]}"#.into()),
            "sobjects/Nope__c/describe" => (404, refusal("NOT_FOUND", "The requested resource does not exist")),
            "sobjects/Odd__c/describe" => (400, refusal("INVALID_TYPE", "sObject type 'Odd__c' is not supported.")),
            "sobjects" => (200, r#"{"maxBatchSize":200,"sobjects":[{"name":"Account","createable":true}]}"#.into()),
            _ => (503, String::new()),
        })
        .await;
        let describer = Describer::new(stub.rest.clone());
        for name in ["Account", "Account", "ACCOUNT"] {
            assert_eq!(describer.describe(name).await.unwrap().unwrap().key_prefix.as_deref(), Some("001"));
        }
        assert_eq!(stub.asked().len(), 1);
        describer.clone().refresh("Account").await.unwrap();
        assert_eq!(stub.asked().len(), 2);
        assert!(describer.describe("Nope__c").await.unwrap().is_none());
        assert!(describer.describe("Odd__c").await.unwrap().is_none());
        assert_eq!(describer.describe("Down__c").await.unwrap_err().kind(), Kind::Unavailable);
        let all = list_sobjects(&stub.rest).await.unwrap();
        assert!(all.len() == 1 && all[0].createable && !all[0].deletable);
    }
}
