//! From the org file to the org's schema: custom objects, custom fields, and changed attributes of standard fields.

use serde_json::Value as Json;

use super::config::{FieldSpec, ObjectSpec, OrgFile};
use super::schema::{Field, Kind, Object, OnDelete, Schema, label_of};
use super::{id, normalise, standard};
use crate::error::{Error, Kind as ErrorKind, Result};

/// The schema of an org with the standard objects and what `file` adds to them.
pub(crate) fn schema(file: &OrgFile) -> Result<Schema> {
    let mut objects = standard::objects();
    let mut customs = 0;
    for spec in &file.objects {
        let known = objects.iter().position(|o| o.name.eq_ignore_ascii_case(&spec.name));
        if known.is_none() {
            objects.push(custom_object(spec, customs)?);
            customs += 1;
        }
        let position = known.unwrap_or(objects.len() - 1);
        objects[position].events = spec.events;
        for field in &spec.fields {
            add_field(&mut objects, position, field)?;
        }
    }
    for (index, object) in objects.iter_mut().enumerate() {
        for (position, field) in object.fields.iter_mut().enumerate().filter(|(_, f)| f.custom) {
            field.definition_id = Some(id::short(&id::make("00N", (index * 1000 + position) as u64)).to_owned());
        }
    }
    let schema = Schema::new(objects);
    check_references(&schema)?;
    Ok(schema)
}

/// Adds a field to a schema that is in use, or changes one.
pub(crate) fn alter(schema: &mut Schema, object: usize, spec: &FieldSpec) -> Result<()> {
    add_field(&mut schema.objects, object, spec)?;
    let fields = &mut schema.objects[object].fields;
    for (position, field) in fields.iter_mut().enumerate().filter(|(_, f)| f.custom && f.definition_id.is_none()) {
        field.definition_id = Some(id::short(&id::make("00N", (object * 1000 + position) as u64)).to_owned());
    }
    schema.index();
    check_references(schema)
}

/// Removes a field from a schema that is in use. Its place stays, so that rows and other fields keep theirs.
pub(crate) fn remove(schema: &mut Schema, object: usize, field: usize) {
    if let Some(object) = schema.objects.get_mut(object) {
        if let Some(field) = object.fields.get_mut(field) {
            *field =
                Field { removed: true, in_events: false, ..Field::new(&format!("removed {}", field.name), Kind::Text) };
        }
        object.index();
    }
    schema.index();
}

fn wrong(message: String) -> Error {
    Error::new(ErrorKind::Configuration, message)
}

fn check_references(schema: &Schema) -> Result<()> {
    for object in &schema.objects {
        for field in &object.fields {
            if let Some(missing) = field.reference_to.iter().find(|name| schema.object(name).is_none()) {
                return Err(wrong(format!(
                    "{}.{} refers to {missing}, which is not in the org",
                    object.name, field.name
                )));
            }
        }
    }
    Ok(())
}

fn custom_object(spec: &ObjectSpec, index: usize) -> Result<Object> {
    let stem = spec.name.strip_suffix("__c").unwrap_or_default();
    if stem.is_empty() || !stem.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(wrong(format!(
            "the object {} is not a standard object of the sandbox; a custom object's name ends with __c",
            spec.name
        )));
    }
    if index >= 26 * 36 {
        return Err(wrong("an org file can hold at most 936 custom objects".to_owned()));
    }
    let letter = char::from(b'a' + (index / 36) as u8);
    let digit = char::from_digit((index % 36) as u32, 36).unwrap_or('0');
    let mut name = Field::new("Name", Kind::Text);
    name.length = 80;
    name.is_name = true;
    if let Some(prefix) = &spec.auto_number {
        (name.auto_number, name.createable, name.updateable, name.nillable) = (true, false, false, false);
        name.picklist = vec![prefix.clone()];
    }
    let mut fields = standard::leading(true);
    fields.push(standard::owner());
    fields.push(name);
    fields.extend(standard::stamps());
    let mut object = Object::new(&spec.name, &format!("a{digit}{letter}"), fields);
    if let Some(label) = &spec.label {
        object.label.clone_from(label);
        object.label_plural = format!("{label}s");
    }
    Ok(object)
}

fn add_field(objects: &mut [Object], position: usize, spec: &FieldSpec) -> Result<()> {
    let object = &mut objects[position];
    if object.field(&spec.name).is_none() {
        let field = new_field(object, spec)?;
        let parts = if field.kind == Kind::Location { location_parts(&field) } else { Vec::new() };
        object.fields.push(field);
        object.fields.extend(parts);
        object.index();
    }
    let at = object.field(&spec.name).unwrap_or_default();
    if let Some(kind) = spec.kind.as_ref().filter(|_| object.fields[at].custom) {
        let other = new_field(object, spec)?;
        let known = &mut object.fields[at];
        if other.kind != known.kind {
            if other.kind.is_compound() || known.kind.is_compound() {
                return Err(wrong(format!("{}.{} cannot become {kind}", object.name, spec.name)));
            }
            *known = Field { definition_id: known.definition_id.take(), ..other };
        }
    }
    change(&mut object.fields[at], spec).map_err(|e| e.within(&object.name))?;
    object.index();
    Ok(())
}

fn new_field(object: &Object, spec: &FieldSpec) -> Result<Field> {
    let place = format!("{}.{}", object.name, spec.name);
    let stem = spec.name.strip_suffix("__c").unwrap_or_default();
    if stem.is_empty() || !stem.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(wrong(format!(
            "{place} is neither a standard field nor named as a custom one, which ends with __c"
        )));
    }
    let kind = match spec.kind.as_deref().unwrap_or("string") {
        "string" | "text" | "encryptedstring" | "combobox" => Kind::Text,
        "textarea" => Kind::TextArea,
        "picklist" => Kind::Picklist,
        "multipicklist" => Kind::MultiPicklist,
        "boolean" => Kind::Boolean,
        "int" => Kind::Int,
        "double" => Kind::Double,
        "currency" => Kind::Currency,
        "percent" => Kind::Percent,
        "date" => Kind::Date,
        "datetime" => Kind::DateTime,
        "time" => Kind::Time,
        "email" => Kind::Email,
        "phone" => Kind::Phone,
        "url" => Kind::Url,
        "reference" => Kind::Reference,
        "location" => Kind::Location,
        other => return Err(wrong(format!("{place} has the type {other}, which the sandbox does not know"))),
    };
    let mut field = Field::new(&spec.name, kind);
    if kind == Kind::Reference {
        if spec.reference_to.as_ref().is_none_or(Vec::is_empty) {
            return Err(wrong(format!("{place} is a reference and needs reference_to")));
        }
        field.relationship = Some(format!("{stem}__r"));
    }
    Ok(field)
}

fn location_parts(compound: &Field) -> Vec<Field> {
    let stem = compound.name.strip_suffix("__c").unwrap_or(&compound.name);
    ["Latitude", "Longitude"]
        .into_iter()
        .map(|member| {
            let mut field = Field::new(&format!("{stem}__{member}__s"), Kind::Double);
            field.scale = 15;
            field.compound = Some(compound.name.clone());
            field
        })
        .collect()
}

/// Gives `field` the attributes that `spec` names.
fn change(field: &mut Field, spec: &FieldSpec) -> Result<()> {
    let label = spec.label.clone();
    field.label = label.unwrap_or_else(|| if field.custom { label_of(&field.name) } else { field.label.clone() });
    field.length = spec.length.unwrap_or(field.length);
    field.precision = spec.precision.unwrap_or(field.precision);
    field.scale = spec.scale.unwrap_or(field.scale);
    field.nillable = spec.required.map_or(field.nillable, |required| !required);
    field.unique = spec.unique.unwrap_or(field.unique);
    field.external_id = spec.external_id.unwrap_or(field.external_id);
    field.id_lookup |= field.external_id;
    field.case_sensitive = spec.case_sensitive.unwrap_or(field.case_sensitive);
    field.restricted = spec.restricted.unwrap_or(field.restricted);
    field.html = spec.html.unwrap_or(field.html);
    if let Some(values) = &spec.values {
        field.picklist.clone_from(values);
    }
    if let Some(targets) = &spec.reference_to {
        field.reference_to.clone_from(targets);
    }
    if spec.relationship.is_some() {
        field.relationship.clone_from(&spec.relationship);
    }
    if spec.child_relationship.is_some() {
        field.child_relationship.clone_from(&spec.child_relationship);
    }
    field.on_delete = match spec.on_delete.as_deref() {
        None => field.on_delete,
        Some("clear") => OnDelete::Clear,
        Some("cascade") => OnDelete::Cascade,
        Some("restrict") => OnDelete::Restrict,
        Some(other) => {
            return Err(wrong(format!("{}: on_delete is clear, cascade or restrict, not {other}", field.name)));
        }
    };
    if let Some(default) = spec.default.as_ref().filter(|d| **d != Json::Null) {
        field.default = normalise::normalise(field, default)
            .map_err(|refusal| wrong(format!("the default of {} does not fit it: {}", field.name, refusal.message)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn custom_objects_and_fields_come_from_the_org_file() {
        let file = OrgFile::from_toml(
            r#"
            [[objects]]
            name = "Invoice__c"
            [[objects.fields]]
            name = "Account__c"
            type = "reference"
            reference_to = ["Account"]
            child_relationship = "Invoices"
            on_delete = "cascade"
            [[objects.fields]]
            name = "Place__c"
            type = "location"
            [[objects]]
            name = "Account"
            [[objects.fields]]
            name = "Tier__c"
            type = "picklist"
            restricted = true
            values = ["Gold", "Silver"]
            default = "silver"
            [[objects.fields]]
            name = "Phone"
            required = true
            "#,
        )
        .unwrap();
        let schema = schema(&file).unwrap();
        let invoice = &schema.objects[schema.object("invoice__c").unwrap()];
        assert_eq!(invoice.event_name(), "Invoice__ChangeEvent");
        assert_eq!(invoice.relationship("account__r"), invoice.field("Account__c"));
        let place = &invoice.fields[invoice.field("Place__c").unwrap()];
        assert_eq!(place.parts.iter().filter(|p| p.field.is_some()).count(), 2);
        let account = &schema.objects[schema.object("Account").unwrap()];
        let tier = &account.fields[account.field("Tier__c").unwrap()];
        assert_eq!(tier.default.as_ref().map(super::super::value::Value::plain).as_deref(), Some("Silver"));
        assert!(!account.fields[account.field("Phone").unwrap()].nillable);
        assert!(schema.children(schema.object("Account").unwrap()).len() >= 4);
    }

    #[test]
    fn mistakes_are_named() {
        let bad = |text: &str| schema(&OrgFile::from_toml(text).unwrap()).unwrap_err().to_string();
        assert!(bad("[[objects]]\nname='Nope'").contains("Nope"));
        assert!(bad("[[objects]]\nname='Account'\nfields=[{name='X__c',type='blob'}]").contains("blob"));
        assert!(bad("[[objects]]\nname='Account'\nfields=[{name='X__c',type='reference'}]").contains("reference_to"));
        let dangling = "[[objects]]\nname='Account'\nfields=[{name='X__c',type='reference',reference_to=['Yak']}]";
        assert!(bad(dangling).contains("Yak"));
        assert!(OrgFile::from_toml("colour = 1").is_err());
    }
}
