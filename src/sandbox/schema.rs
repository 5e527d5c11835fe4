//! The org's objects and their fields: what can be written, how values are checked, and how they are told of.
//!
//! The order of an object's fields is the order of its change event record: compound fields stand where their record
//! stands and their parts follow them.

use std::collections::HashMap;

use smol_str::SmolStr;

use super::value::Value;

/// A field's type, as describe calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Id,
    Reference,
    Text,
    TextArea,
    Picklist,
    MultiPicklist,
    Boolean,
    Int,
    Double,
    Currency,
    Percent,
    Date,
    DateTime,
    Time,
    Email,
    Phone,
    Url,
    /// A street address made of parts.
    Address,
    /// A place made of latitude and longitude.
    Location,
    /// A person's name made of parts; its own value is their text.
    PersonName,
}

impl Kind {
    /// The name in describe.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Reference => "reference",
            Self::Text | Self::PersonName => "string",
            Self::TextArea => "textarea",
            Self::Picklist => "picklist",
            Self::MultiPicklist => "multipicklist",
            Self::Boolean => "boolean",
            Self::Int => "int",
            Self::Double => "double",
            Self::Currency => "currency",
            Self::Percent => "percent",
            Self::Date => "date",
            Self::DateTime => "datetime",
            Self::Time => "time",
            Self::Email => "email",
            Self::Phone => "phone",
            Self::Url => "url",
            Self::Address => "address",
            Self::Location => "location",
        }
    }

    /// The SOAP type in describe.
    pub(crate) fn soap(self) -> &'static str {
        match self {
            Self::Id | Self::Reference => "tns:ID",
            Self::Boolean => "xsd:boolean",
            Self::Int => "xsd:int",
            Self::Double | Self::Currency | Self::Percent => "xsd:double",
            Self::Date => "xsd:date",
            Self::DateTime => "xsd:dateTime",
            Self::Time => "xsd:time",
            Self::Address => "urn:address",
            Self::Location => "urn:location",
            _ => "xsd:string",
        }
    }

    /// Whether the field has no value of its own.
    pub(crate) fn is_compound(self) -> bool {
        matches!(self, Self::Address | Self::Location | Self::PersonName)
    }

    /// Whether values are text.
    pub(crate) fn is_text(self) -> bool {
        matches!(
            self,
            Self::Id
                | Self::Reference
                | Self::Text
                | Self::TextArea
                | Self::Picklist
                | Self::MultiPicklist
                | Self::Email
                | Self::Phone
                | Self::Url
                | Self::PersonName
        )
    }

    /// Whether values are numbers with decimals.
    pub(crate) fn is_decimal(self) -> bool {
        matches!(self, Self::Double | Self::Currency | Self::Percent)
    }
}

/// What becomes of a record when the record that it refers to is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum OnDelete {
    /// The reference becomes null.
    #[default]
    Clear,
    /// The record is deleted too.
    Cascade,
    /// The delete is refused.
    Restrict,
}

/// One part of a compound field: the member's name in the event record and the field that holds it, if the org has it.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) member: &'static str,
    pub(crate) field: Option<usize>,
    pub(crate) double: bool,
}

/// A field.
#[derive(Debug, Clone)]
pub(crate) struct Field {
    pub(crate) name: SmolStr,
    pub(crate) label: String,
    pub(crate) kind: Kind,
    /// Characters, for text.
    pub(crate) length: u32,
    pub(crate) precision: u32,
    pub(crate) scale: u32,
    pub(crate) nillable: bool,
    pub(crate) createable: bool,
    pub(crate) updateable: bool,
    pub(crate) unique: bool,
    pub(crate) external_id: bool,
    pub(crate) case_sensitive: bool,
    pub(crate) id_lookup: bool,
    pub(crate) custom: bool,
    pub(crate) auto_number: bool,
    pub(crate) is_name: bool,
    pub(crate) html: bool,
    pub(crate) restricted: bool,
    pub(crate) picklist: Vec<String>,
    pub(crate) reference_to: Vec<String>,
    pub(crate) relationship: Option<String>,
    pub(crate) child_relationship: Option<String>,
    pub(crate) on_delete: OnDelete,
    pub(crate) default: Option<Value>,
    /// The compound field that this field is a part of.
    pub(crate) compound: Option<SmolStr>,
    pub(crate) parts: Vec<Part>,
    /// Whether change events carry it.
    pub(crate) in_events: bool,
    /// Whether it was removed: it is in no description, and nobody can name it.
    pub(crate) removed: bool,
    /// The field's definition id, for custom fields.
    pub(crate) definition_id: Option<String>,
}

impl Field {
    /// A writable, nillable field.
    pub(crate) fn new(name: &str, kind: Kind) -> Self {
        let length = match kind {
            Kind::Id | Kind::Reference => 18,
            Kind::Text | Kind::Picklist | Kind::Url | Kind::TextArea => 255,
            Kind::MultiPicklist => 4099,
            Kind::Email => 80,
            Kind::Phone => 40,
            Kind::PersonName => 121,
            _ => 0,
        };
        Self {
            name: name.into(),
            label: label_of(name),
            kind,
            length,
            precision: if kind.is_decimal() { 18 } else { 0 },
            scale: if kind == Kind::Currency { 2 } else { 0 },
            nillable: kind != Kind::Boolean,
            createable: !kind.is_compound(),
            updateable: !kind.is_compound(),
            unique: false,
            external_id: false,
            case_sensitive: false,
            id_lookup: false,
            custom: name.ends_with("__c") || name.ends_with("__s"),
            auto_number: false,
            is_name: false,
            html: false,
            restricted: false,
            picklist: Vec::new(),
            reference_to: Vec::new(),
            relationship: None,
            child_relationship: None,
            on_delete: OnDelete::Clear,
            default: (kind == Kind::Boolean).then_some(Value::Bool(false)),
            compound: None,
            parts: Vec::new(),
            in_events: true,
            removed: false,
            definition_id: None,
        }
    }

    /// Whether a create that does not give it gets a value.
    pub(crate) fn defaulted_on_create(&self) -> bool {
        self.default.is_some() || self.name == "OwnerId" || !self.createable && !self.nillable
    }

    /// Whether WHERE may name it.
    pub(crate) fn filterable(&self) -> bool {
        !(matches!(self.kind, Kind::Address | Kind::Location) || self.kind == Kind::TextArea && self.length > 255)
    }

    /// Whether it is calculated and never written.
    pub(crate) fn calculated(&self) -> bool {
        self.kind == Kind::PersonName
    }
}

/// The indexes of the fields that the org itself keeps.
#[derive(Debug, Clone, Default)]
pub(crate) struct SystemFields {
    pub(crate) deleted: Option<usize>,
    pub(crate) created_date: usize,
    pub(crate) created_by: usize,
    pub(crate) modified_date: usize,
    pub(crate) modified_by: usize,
    pub(crate) stamp: usize,
    pub(crate) owner: Option<usize>,
}

/// An object: a kind of record.
#[derive(Debug, Clone)]
pub(crate) struct Object {
    pub(crate) name: SmolStr,
    pub(crate) label: String,
    pub(crate) label_plural: String,
    pub(crate) key_prefix: SmolStr,
    pub(crate) custom: bool,
    /// Whether changes of it are told of.
    pub(crate) events: bool,
    pub(crate) fields: Vec<Field>,
    pub(crate) system: SystemFields,
    by_name: HashMap<SmolStr, usize>,
}

/// The index of `Id`, on every object.
pub(crate) const ID: usize = 0;

impl Object {
    /// An object of `fields`, which include the system fields and begin with `Id`.
    pub(crate) fn new(name: &str, key_prefix: &str, fields: Vec<Field>) -> Self {
        let label = label_of(name);
        let mut object = Self {
            name: name.into(),
            label_plural: plural(&label),
            label,
            key_prefix: key_prefix.into(),
            custom: name.ends_with("__c"),
            events: true,
            fields,
            system: SystemFields::default(),
            by_name: HashMap::new(),
        };
        object.index();
        object
    }

    /// Recomputes what follows from the fields. Called after each change of them.
    pub(crate) fn index(&mut self) {
        let named = self.fields.iter().enumerate().filter(|(_, f)| !f.removed);
        self.by_name = named.map(|(i, f)| (f.name.to_lowercase().into(), i)).collect();
        let at = |name: &str| self.field(name);
        self.system = SystemFields {
            deleted: at("IsDeleted"),
            created_date: at("CreatedDate").unwrap_or(ID),
            created_by: at("CreatedById").unwrap_or(ID),
            modified_date: at("LastModifiedDate").unwrap_or(ID),
            modified_by: at("LastModifiedById").unwrap_or(ID),
            stamp: at("SystemModstamp").unwrap_or(ID),
            owner: at("OwnerId"),
        };
        let parts: Vec<Vec<Part>> = self.fields.iter().map(|field| self.parts_of(field)).collect();
        for (field, parts) in self.fields.iter_mut().zip(parts) {
            field.parts = parts;
        }
    }

    fn parts_of(&self, compound: &Field) -> Vec<Part> {
        let members: &[(&'static str, bool)] = match compound.kind {
            Kind::Address => &[
                ("Street", false),
                ("City", false),
                ("State", false),
                ("PostalCode", false),
                ("Country", false),
                ("StateCode", false),
                ("CountryCode", false),
                ("Latitude", true),
                ("Longitude", true),
                ("GeocodeAccuracy", false),
            ],
            Kind::Location => &[("Latitude", true), ("Longitude", true)],
            Kind::PersonName => &[("Salutation", false), ("FirstName", false), ("LastName", false)],
            _ => &[],
        };
        members
            .iter()
            .map(|&(member, double)| Part { member, field: self.field(&part_name(compound, member)), double })
            .collect()
    }

    /// The index of the field called `name`, in any case.
    pub(crate) fn field(&self, name: &str) -> Option<usize> {
        if name.bytes().any(|b| b.is_ascii_uppercase()) {
            self.by_name.get(name.to_ascii_lowercase().as_str()).copied()
        } else {
            self.by_name.get(name).copied()
        }
    }

    /// The index of the reference field whose relationship is called `name`, in any case.
    pub(crate) fn relationship(&self, name: &str) -> Option<usize> {
        self.fields.iter().position(|f| f.relationship.as_deref().is_some_and(|r| r.eq_ignore_ascii_case(name)))
    }

    /// The name that the object's change events and their topic have.
    pub(crate) fn event_name(&self) -> String {
        match self.name.strip_suffix("__c") {
            Some(stem) => format!("{stem}__ChangeEvent"),
            None => format!("{}ChangeEvent", self.name),
        }
    }
}

/// The REST name of a compound's part.
fn part_name(compound: &Field, member: &str) -> String {
    match (compound.kind, compound.name.strip_suffix("__c")) {
        (Kind::PersonName, _) => member.to_owned(),
        (_, Some(stem)) => format!("{stem}__{member}__s"),
        _ => format!("{}{member}", compound.name.strip_suffix("Address").unwrap_or(&compound.name)),
    }
}

/// A reference seen from the record that is referred to.
#[derive(Debug, Clone)]
pub(crate) struct Child {
    pub(crate) object: usize,
    pub(crate) field: usize,
}

/// All objects of the org.
#[derive(Debug, Clone, Default)]
pub(crate) struct Schema {
    pub(crate) objects: Vec<Object>,
    by_name: HashMap<SmolStr, usize>,
    children: Vec<Vec<Child>>,
}

impl Schema {
    /// A schema of `objects`.
    pub(crate) fn new(objects: Vec<Object>) -> Self {
        let mut schema = Self { objects, by_name: HashMap::new(), children: Vec::new() };
        schema.index();
        schema
    }

    /// Recomputes what follows from the objects.
    pub(crate) fn index(&mut self) {
        self.by_name = self.objects.iter().enumerate().map(|(i, o)| (o.name.to_lowercase().into(), i)).collect();
        let mut children = vec![Vec::new(); self.objects.len()];
        for (index, object) in self.objects.iter().enumerate() {
            for (position, field) in object.fields.iter().enumerate() {
                for target in field.reference_to.iter().filter_map(|name| self.object(name)) {
                    children[target].push(Child { object: index, field: position });
                }
            }
        }
        self.children = children;
    }

    /// The index of the object called `name`, in any case.
    pub(crate) fn object(&self, name: &str) -> Option<usize> {
        self.by_name.get(name.to_ascii_lowercase().as_str()).copied()
    }

    /// The object whose records' ids begin as `id` does.
    pub(crate) fn object_of_id(&self, id: &str) -> Option<usize> {
        let prefix = id.get(..3)?;
        self.objects.iter().position(|o| o.key_prefix == prefix)
    }

    /// The references to records of `object`.
    pub(crate) fn children(&self, object: usize) -> &[Child] {
        self.children.get(object).map_or(&[], Vec::as_slice)
    }
}

/// A label made of a name: `NumberOfEmployees` becomes `Number Of Employees`.
pub(crate) fn label_of(name: &str) -> String {
    let stem = name.strip_suffix("__c").or_else(|| name.strip_suffix("__s")).unwrap_or(name);
    let stem = stem.replace("__", " ").replace('_', " ");
    let mut label = String::new();
    let mut previous = ' ';
    for c in stem.chars() {
        if c.is_uppercase() && previous.is_lowercase() {
            label.push(' ');
        }
        label.push(c);
        previous = c;
    }
    match label.strip_suffix(" Id") {
        Some(stem) => format!("{stem} ID"),
        None => label,
    }
}

fn plural(label: &str) -> String {
    match label.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{label}s"),
    }
}
