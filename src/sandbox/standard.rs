//! The standard objects of the org, with their fields in the order of their change event records.

use super::schema::{Field, Kind, Object, OnDelete};
use super::value::Value;

/// Account, Contact, Opportunity, Case and User.
pub(crate) fn objects() -> Vec<Object> {
    vec![account(), contact(), opportunity(), case(), user()]
}

/// Picklist values that mean an opportunity is closed, and whether it is won.
pub(crate) const STAGES: [(&str, u8, bool, bool, &str); 10] = [
    ("Prospecting", 10, false, false, "Pipeline"),
    ("Qualification", 10, false, false, "Pipeline"),
    ("Needs Analysis", 20, false, false, "Pipeline"),
    ("Value Proposition", 50, false, false, "Pipeline"),
    ("Id. Decision Makers", 60, false, false, "Pipeline"),
    ("Perception Analysis", 70, false, false, "Pipeline"),
    ("Proposal/Price Quote", 75, false, false, "Pipeline"),
    ("Negotiation/Review", 90, false, false, "Pipeline"),
    ("Closed Won", 100, true, true, "Closed"),
    ("Closed Lost", 0, true, false, "Omitted"),
];

/// Industries that an account can be in.
pub(crate) const INDUSTRIES: [&str; 16] = [
    "Agriculture",
    "Banking",
    "Biotechnology",
    "Chemicals",
    "Construction",
    "Consulting",
    "Education",
    "Electronics",
    "Energy",
    "Engineering",
    "Finance",
    "Healthcare",
    "Insurance",
    "Manufacturing",
    "Retail",
    "Technology",
];

const ACCOUNT_TYPES: [&str; 7] = [
    "Prospect",
    "Customer - Direct",
    "Customer - Channel",
    "Channel Partner / Reseller",
    "Installation Partner",
    "Technology Partner",
    "Other",
];
const LEAD_SOURCES: [&str; 5] = ["Web", "Phone Inquiry", "Partner Referral", "Purchased List", "Other"];

/// Small words that make the lists of fields read like a table.
trait Build: Sized {
    fn length(self, length: u32) -> Self;
    fn digits(self, precision: u32, scale: u32) -> Self;
    fn label(self, label: &str) -> Self;
    fn required(self) -> Self;
    fn read_only(self) -> Self;
    fn hidden(self) -> Self;
    fn values(self, values: &[&str]) -> Self;
    fn to(self, object: &str, relationship: &str, children: &str, on_delete: OnDelete) -> Self;
    fn part_of(self, compound: &str) -> Self;
    fn with_default(self, value: Value) -> Self;
}

impl Build for Field {
    fn length(mut self, length: u32) -> Self {
        self.length = length;
        self
    }
    fn digits(mut self, precision: u32, scale: u32) -> Self {
        (self.precision, self.scale) = (precision, scale);
        self
    }
    fn label(mut self, label: &str) -> Self {
        label.clone_into(&mut self.label);
        self
    }
    fn required(mut self) -> Self {
        self.nillable = false;
        self
    }
    fn read_only(mut self) -> Self {
        (self.createable, self.updateable) = (false, false);
        self
    }
    fn hidden(mut self) -> Self {
        self.in_events = false;
        self
    }
    fn values(mut self, values: &[&str]) -> Self {
        self.picklist = values.iter().map(|&v| v.to_owned()).collect();
        self
    }
    fn to(mut self, object: &str, relationship: &str, children: &str, on_delete: OnDelete) -> Self {
        self.reference_to = vec![object.to_owned()];
        self.relationship = Some(relationship.to_owned());
        self.child_relationship = (!children.is_empty()).then(|| children.to_owned());
        self.on_delete = on_delete;
        self
    }
    fn part_of(mut self, compound: &str) -> Self {
        self.compound = Some(compound.into());
        self
    }
    fn with_default(mut self, value: Value) -> Self {
        self.default = Some(value);
        self
    }
}

fn f(name: &str, kind: Kind) -> Field {
    Field::new(name, kind)
}

fn text(name: &str, length: u32) -> Field {
    f(name, Kind::Text).length(length)
}

fn flag(name: &str) -> Field {
    f(name, Kind::Boolean)
}

fn reference(name: &str, object: &str, children: &str, on_delete: OnDelete) -> Field {
    f(name, Kind::Reference).to(object, name.strip_suffix("Id").unwrap_or(name), children, on_delete)
}

/// `Id` and, where the object has a recycle bin, `IsDeleted`.
pub(crate) fn leading(recycles: bool) -> Vec<Field> {
    let mut id = f("Id", Kind::Id).read_only().required().hidden();
    id.id_lookup = true;
    let mut fields = vec![id];
    if recycles {
        fields.push(flag("IsDeleted").label("Deleted").read_only().hidden());
    }
    fields
}

/// `OwnerId`.
pub(crate) fn owner() -> Field {
    reference("OwnerId", "User", "", OnDelete::Restrict).required()
}

/// The stamps that the org keeps of who changed a record and when.
pub(crate) fn stamps() -> Vec<Field> {
    let by = |name: &str| reference(name, "User", "", OnDelete::Restrict).required().read_only();
    let at = |name: &str| f(name, Kind::DateTime).required().read_only();
    vec![
        at("CreatedDate"),
        by("CreatedById"),
        at("LastModifiedDate"),
        by("LastModifiedById"),
        at("SystemModstamp").hidden(),
    ]
}

fn address(compound: &str) -> Vec<Field> {
    let stem = compound.strip_suffix("Address").unwrap_or(compound);
    let part = |name: &str, kind: Kind| f(&format!("{stem}{name}"), kind).part_of(compound);
    vec![
        f(compound, Kind::Address),
        part("Street", Kind::TextArea),
        part("City", Kind::Text).length(40),
        part("State", Kind::Text).length(80),
        part("PostalCode", Kind::Text).length(20),
        part("Country", Kind::Text).length(80),
        part("Latitude", Kind::Double).digits(18, 15),
        part("Longitude", Kind::Double).digits(18, 15),
        part("GeocodeAccuracy", Kind::Picklist).length(40).values(&["Address", "Street", "Block", "City", "Unknown"]),
    ]
}

fn external_id() -> Field {
    let mut field = text("External_ID__c", 64).label("External ID");
    (field.unique, field.external_id, field.id_lookup) = (true, true, true);
    field
}

/// The parts of a person's name with the compound before them.
fn person(object_requires_last_name: bool) -> Vec<Field> {
    let mut name = f("Name", Kind::PersonName).label("Full Name");
    name.is_name = true;
    let last = text("LastName", 80).part_of("Name");
    vec![
        name,
        f("Salutation", Kind::Picklist).length(40).values(&["Mr.", "Ms.", "Mrs.", "Dr.", "Prof."]).part_of("Name"),
        text("FirstName", 40).part_of("Name"),
        if object_requires_last_name { last.required() } else { last },
    ]
}

fn account() -> Object {
    let mut name = text("Name", 255).label("Account Name").required();
    name.is_name = true;
    let mut fields = leading(true);
    fields.extend([
        name,
        f("Type", Kind::Picklist).label("Account Type").values(&ACCOUNT_TYPES),
        reference("ParentId", "Account", "ChildAccounts", OnDelete::Clear).label("Parent Account ID"),
    ]);
    fields.extend(address("BillingAddress"));
    fields.extend(address("ShippingAddress"));
    fields.extend([
        f("Phone", Kind::Phone).label("Account Phone"),
        f("Fax", Kind::Phone).label("Account Fax"),
        text("AccountNumber", 40),
        f("Website", Kind::Url),
        text("Sic", 20).label("SIC Code"),
        f("Industry", Kind::Picklist).values(&INDUSTRIES),
        f("AnnualRevenue", Kind::Currency).digits(18, 0),
        f("NumberOfEmployees", Kind::Int).label("Employees"),
        f("Ownership", Kind::Picklist).values(&["Public", "Private", "Subsidiary", "Other"]),
        text("TickerSymbol", 20),
        f("Description", Kind::TextArea).length(32_000).label("Account Description"),
        f("Rating", Kind::Picklist).label("Account Rating").values(&["Hot", "Warm", "Cold"]),
        text("Site", 80).label("Account Site"),
        owner(),
    ]);
    fields.extend(stamps());
    fields.push(f("AccountSource", Kind::Picklist).values(&LEAD_SOURCES));
    fields.push(external_id());
    Object::new("Account", "001", fields)
}

fn contact() -> Object {
    let mut fields = leading(true);
    fields.push(reference("AccountId", "Account", "Contacts", OnDelete::Cascade));
    fields.extend(person(true));
    fields.extend(address("OtherAddress"));
    fields.extend(address("MailingAddress"));
    fields.extend([
        f("Phone", Kind::Phone).label("Business Phone"),
        f("Fax", Kind::Phone).label("Business Fax"),
        f("MobilePhone", Kind::Phone),
        f("HomePhone", Kind::Phone),
        f("OtherPhone", Kind::Phone),
        f("AssistantPhone", Kind::Phone),
        reference("ReportsToId", "Contact", "", OnDelete::Clear),
        f("Email", Kind::Email),
        text("Title", 128),
        text("Department", 80),
        text("AssistantName", 40),
        f("LeadSource", Kind::Picklist).values(&LEAD_SOURCES),
        f("Birthdate", Kind::Date),
        f("Description", Kind::TextArea).length(32_000).label("Contact Description"),
        owner(),
        flag("HasOptedOutOfEmail").label("Email Opt Out"),
        flag("HasOptedOutOfFax").label("Fax Opt Out"),
        flag("DoNotCall").label("Do Not Call"),
    ]);
    fields.extend(stamps());
    fields.push(external_id());
    Object::new("Contact", "003", fields)
}

fn opportunity() -> Object {
    let mut name = text("Name", 120).required();
    name.is_name = true;
    let stages: Vec<&str> = STAGES.iter().map(|s| s.0).collect();
    let mut fields = leading(true);
    fields.extend([
        reference("AccountId", "Account", "Opportunities", OnDelete::Cascade),
        flag("IsPrivate").label("Private"),
        name,
        f("Description", Kind::TextArea).length(32_000),
        f("StageName", Kind::Picklist).label("Stage").values(&stages).required(),
        f("Amount", Kind::Currency).digits(18, 2),
        f("Probability", Kind::Percent).digits(3, 0).label("Probability (%)"),
        f("ExpectedRevenue", Kind::Currency).digits(18, 2).label("Expected Amount").read_only(),
        f("TotalOpportunityQuantity", Kind::Double).digits(18, 2).label("Quantity"),
        f("CloseDate", Kind::Date).required(),
        f("Type", Kind::Picklist).label("Opportunity Type").values(&["Existing Business", "New Business"]),
        text("NextStep", 255),
        f("LeadSource", Kind::Picklist).values(&LEAD_SOURCES),
        flag("IsClosed").label("Closed").read_only(),
        flag("IsWon").label("Won").read_only(),
        f("ForecastCategoryName", Kind::Picklist).label("Forecast Category").values(&[
            "Omitted",
            "Pipeline",
            "Best Case",
            "Commit",
            "Closed",
        ]),
        owner(),
    ]);
    fields.extend(stamps());
    fields.push(external_id());
    Object::new("Opportunity", "006", fields)
}

fn case() -> Object {
    let mut number = text("CaseNumber", 30).required().read_only();
    (number.auto_number, number.is_name) = (true, true);
    let mut fields = leading(true);
    fields.extend([
        number,
        reference("ContactId", "Contact", "Cases", OnDelete::Restrict),
        reference("AccountId", "Account", "Cases", OnDelete::Restrict),
        reference("ParentId", "Case", "Cases", OnDelete::Clear).label("Parent Case ID"),
        text("SuppliedName", 80).label("Name"),
        f("SuppliedEmail", Kind::Email).label("Email Address"),
        text("SuppliedPhone", 40).label("Phone"),
        text("SuppliedCompany", 80).label("Company"),
        f("Type", Kind::Picklist).label("Case Type").values(&["Problem", "Feature Request", "Question"]),
        f("Status", Kind::Picklist)
            .values(&["New", "Working", "Escalated", "Closed"])
            .with_default(Value::Text("New".into())),
        f("Reason", Kind::Picklist).label("Case Reason").values(&[
            "Installation",
            "Equipment Complexity",
            "Performance",
            "Breakdown",
            "Feedback",
            "Other",
        ]),
        f("Origin", Kind::Picklist).label("Case Origin").values(&["Phone", "Email", "Web"]),
        text("Subject", 255),
        f("Priority", Kind::Picklist).values(&["High", "Medium", "Low"]).with_default(Value::Text("Medium".into())),
        f("Description", Kind::TextArea).length(32_000),
        flag("IsClosed").label("Closed").read_only(),
        f("ClosedDate", Kind::DateTime).label("Date/Time Closed").read_only(),
        flag("IsEscalated").label("Escalated"),
        owner(),
    ]);
    fields.extend(stamps());
    fields.push(external_id());
    Object::new("Case", "500", fields)
}

fn user() -> Object {
    let mut username = text("Username", 80).required();
    (username.unique, username.id_lookup) = (true, true);
    let mut fields = leading(false);
    fields.push(username);
    fields.extend(person(true));
    fields.extend([
        text("CompanyName", 80),
        text("Division", 80),
        text("Department", 80),
        text("Title", 80),
        f("Email", Kind::Email).required(),
        f("Phone", Kind::Phone),
        f("MobilePhone", Kind::Phone),
        text("Alias", 8).required().with_default(Value::Text("user".into())),
        flag("IsActive").label("Active").with_default(Value::Bool(true)),
        f("TimeZoneSidKey", Kind::Picklist)
            .length(40)
            .values(&["GMT", "America/Los_Angeles", "Europe/Berlin"])
            .with_default(Value::Text("GMT".into())),
    ]);
    fields.extend(stamps());
    Object::new("User", "005", fields)
}
