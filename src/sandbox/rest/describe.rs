//! Describe: what objects and fields there are, with every key that clients look for.

use serde_json::{Value as Json, json};

use super::super::refusal::Refusal;
use super::super::schema::{Field, ID, Kind, Object, OnDelete};
use super::super::state::State;
use super::super::value::Value;
use super::{Request, Response};

pub(super) fn global(state: &State, request: &Request) -> Response {
    let objects: Vec<Json> = state.schema.objects.iter().map(|object| entry(object, request)).collect();
    Response::ok(json!({"encoding": "UTF-8", "maxBatchSize": 200, "sobjects": objects}).to_string())
}

pub(super) fn basic(state: &State, request: &Request, name: &str) -> Result<Response, Refusal> {
    let object = state.object(name)?;
    let body = json!({"objectDescribe": entry(&state.schema.objects[object], request), "recentItems": []});
    Ok(Response::ok(body.to_string()))
}

pub(super) fn describe(state: &State, request: &Request, name: &str) -> Result<Response, Refusal> {
    let index = state.object(name)?;
    let object = &state.schema.objects[index];
    let mut body = entry(object, request);
    let children: Vec<Json> = state
        .schema
        .children(index)
        .iter()
        .map(|child| {
            let field = &state.schema.objects[child.object].fields[child.field];
            let relationship = field.child_relationship.as_ref();
            let relationship = relationship.map(|name| if field.custom { format!("{name}__r") } else { name.clone() });
            json!({
                "cascadeDelete": field.on_delete == OnDelete::Cascade,
                "childSObject": state.schema.objects[child.object].name.as_str(),
                "deprecatedAndHidden": false,
                "field": field.name.as_str(),
                "junctionIdListNames": [],
                "junctionReferenceTo": [],
                "relationshipName": relationship,
                "restrictedDelete": field.on_delete == OnDelete::Restrict,
            })
        })
        .collect();
    let fields: Vec<Json> =
        object.fields.iter().filter(|field| !field.removed).map(|field| describe_field(object, field)).collect();
    let more = json!({
        "actionOverrides": [],
        "childRelationships": children,
        "compactLayoutable": true,
        "defaultImplementation": null,
        "extendedBy": null,
        "extendsInterfaces": null,
        "fields": fields,
        "implementedBy": null,
        "implementsInterfaces": null,
        "listviewable": null,
        "lookupLayoutable": null,
        "namedLayoutInfos": [],
        "networkScopeFieldName": null,
        "recordTypeInfos": [{
            "active": true, "available": true, "defaultRecordTypeMapping": true, "developerName": "Master",
            "master": true, "name": "Master", "recordTypeId": "012000000000000AAA",
            "urls": {"layout": format!("{}/sobjects/{}/describe/layouts/012000000000000AAA", request.base(), object.name)},
        }],
        "searchLayoutable": true,
        "sobjectDescribeOption": "FULL",
        "supportedScopes": [{"label": format!("All {}", object.label_plural), "name": "everything"}],
    });
    if let (Json::Object(body), Json::Object(more)) = (&mut body, more) {
        body.extend(more);
    }
    Ok(Response::ok(body.to_string()))
}

fn entry(object: &Object, request: &Request) -> Json {
    let base = format!("{}/sobjects/{}", request.base(), object.name);
    let recycles = object.system.deleted.is_some();
    json!({
        "activateable": false,
        "associateEntityType": null,
        "associateParentEntity": null,
        "createable": true,
        "custom": object.custom,
        "customSetting": false,
        "deepCloneable": false,
        "deletable": recycles,
        "deprecatedAndHidden": false,
        "feedEnabled": false,
        "hasSubtypes": false,
        "isInterface": false,
        "isSubtype": false,
        "keyPrefix": object.key_prefix.as_str(),
        "label": object.label,
        "labelPlural": object.label_plural,
        "layoutable": true,
        "mergeable": false,
        "mruEnabled": true,
        "name": object.name.as_str(),
        "queryable": true,
        "replicateable": recycles,
        "retrieveable": true,
        "searchable": true,
        "triggerable": true,
        "undeletable": recycles,
        "updateable": true,
        "urls": {
            "sobject": base,
            "describe": format!("{base}/describe"),
            "rowTemplate": format!("{base}/{{ID}}"),
        },
    })
}

fn describe_field(object: &Object, field: &Field) -> Json {
    let default = field.default.as_ref().map(Value::json);
    let picklist: Vec<Json> = if matches!(field.kind, Kind::Picklist | Kind::MultiPicklist) {
        let is_default = |value: &str| field.default.as_ref().and_then(Value::text) == Some(value);
        let value = |v: &String| json!({"active": true, "defaultValue": is_default(v), "label": v, "validFor": null, "value": v});
        field.picklist.iter().map(value).collect()
    } else {
        Vec::new()
    };
    let text = field.kind.is_text();
    let long = field.kind == Kind::TextArea && field.length > 255;
    let extra = (field.kind == Kind::TextArea).then_some(if field.html { "richtextarea" } else { "plaintextarea" });
    let is_id = object.fields.get(ID).is_some_and(|id| id.name == field.name);
    let mut first = json!({
        "aggregatable": !long && !matches!(field.kind, Kind::Boolean | Kind::Address | Kind::Location),
        "aiPredictionField": false,
        "autoNumber": field.auto_number,
        "byteLength": if text { field.length * 3 } else { 0 },
        "calculated": field.calculated(),
        "calculatedFormula": null,
        "cascadeDelete": field.on_delete == OnDelete::Cascade,
        "caseSensitive": field.case_sensitive,
        "compoundFieldName": field.compound.as_deref(),
        "controllerName": null,
        "createable": field.createable,
        "custom": field.custom,
        "defaultValue": default,
        "defaultValueFormula": null,
        "defaultedOnCreate": field.defaulted_on_create(),
        "dependentPicklist": false,
        "deprecatedAndHidden": false,
        "digits": if field.kind == Kind::Int { 9 } else { 0 },
        "displayLocationInDecimal": field.kind == Kind::Location,
        "encrypted": false,
        "externalId": field.external_id,
        "extraTypeInfo": extra,
        "filterable": field.filterable(),
        "filteredLookupInfo": null,
        "formulaTreatNullNumberAsZero": false,
        "groupable": !long && !field.kind.is_decimal() && !field.kind.is_compound() && field.kind != Kind::DateTime,
        "highScaleNumber": false,
        "htmlFormatted": field.html,
        "idLookup": field.id_lookup,
    });
    let second = json!({
        "inlineHelpText": null,
        "label": if is_id { format!("{} ID", object.label) } else { field.label.clone() },
        "length": if text { field.length } else { 0 },
        "mask": null,
        "maskType": null,
        "name": field.name.as_str(),
        "nameField": field.is_name,
        "namePointing": false,
        "nillable": field.nillable,
        "permissionable": field.custom || field.nillable,
        "picklistValues": picklist,
        "polymorphicForeignKey": field.reference_to.len() > 1,
        "precision": field.precision,
        "queryByDistance": field.kind == Kind::Location,
        "referenceTargetField": null,
        "referenceTo": field.reference_to,
        "relationshipName": field.relationship,
        "relationshipOrder": null,
        "restrictedDelete": field.on_delete == OnDelete::Restrict && field.kind == Kind::Reference,
        "restrictedPicklist": field.restricted,
        "scale": field.scale,
        "searchPrefilterable": field.kind == Kind::Reference,
        "soapType": field.kind.soap(),
        "sortable": !long && !matches!(field.kind, Kind::Address | Kind::Location | Kind::MultiPicklist),
        "type": field.kind.name(),
        "unique": field.unique,
        "updateable": field.updateable,
        "writeRequiresMasterRead": false,
    });
    if let (Json::Object(first), Json::Object(second)) = (&mut first, second) {
        first.extend(second);
    }
    first
}
