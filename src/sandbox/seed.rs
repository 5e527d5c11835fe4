//! Believable records for an org to begin with. The same seed gives the same records.

use serde_json::{Map, Value as Json, json};

use super::config::Seed;
use super::rng::Rng;
use super::standard::{INDUSTRIES, STAGES};
use super::state::State;
use super::time;
use super::write::{Actor, Op, transact};
use crate::error::{Error, Kind, Result};

const FIRST_NAMES: [&str; 24] = [
    "Ada",
    "Björn",
    "Carmen",
    "Dmitri",
    "Elena",
    "Farid",
    "Grace",
    "Hiro",
    "Ingrid",
    "João",
    "Katarzyna",
    "Liam",
    "María",
    "Noah",
    "Olga",
    "Priya",
    "Quentin",
    "Rosa",
    "Søren",
    "Tomás",
    "Uma",
    "Viktor",
    "Wen",
    "Zoë",
];
const LAST_NAMES: [&str; 24] = [
    "Abara", "Bennett", "Castillo", "Dubois", "Eriksson", "Fischer", "García", "Hughes", "Ivanova", "Jensen",
    "Kowalski", "Laurent", "Müller", "Nakamura", "Okafor", "Patel", "Quinn", "Rossi", "Silva", "Tanaka", "Ueda",
    "Novák", "Weber", "O'Brien",
];
const COMPANY_FIRST: [&str; 20] = [
    "Aldgate",
    "Blue Harbor",
    "Cedar",
    "Dunmore",
    "Eastfield",
    "Fjord",
    "Granite",
    "Harbinger",
    "Iron Bridge",
    "Juniper",
    "Kestrel",
    "Lumen",
    "Meridian",
    "Northwind",
    "Oakridge",
    "Pinnacle",
    "Quarry",
    "Riverside",
    "Summit",
    "Tidewater",
];
const COMPANY_LAST: [&str; 12] = [
    "Logistics",
    "Foods",
    "Systems",
    "Partners",
    "Textiles",
    "Energy",
    "Pharma",
    "Robotics",
    "Media",
    "Holdings",
    "Instruments",
    "Cooperative",
];
const CITIES: [(&str, &str, &str, &str); 10] = [
    ("Hamburg", "Hamburg", "20095", "Germany"),
    ("Lyon", "Auvergne-Rhône-Alpes", "69001", "France"),
    ("Porto", "Porto", "4000-011", "Portugal"),
    ("Austin", "TX", "78701", "USA"),
    ("Portland", "OR", "97201", "USA"),
    ("Leeds", "West Yorkshire", "LS1 4DY", "United Kingdom"),
    ("Kraków", "Małopolskie", "30-001", "Poland"),
    ("Osaka", "Osaka", "530-0001", "Japan"),
    ("Toronto", "ON", "M5V 2T6", "Canada"),
    ("Aarhus", "Midtjylland", "8000", "Denmark"),
];
const STREETS: [&str; 8] = [
    "Market Street",
    "Harbour Road",
    "Mill Lane",
    "Station Avenue",
    "Linden Way",
    "Quay Street",
    "Hill Rise",
    "Park Row",
];
const TITLES: [&str; 8] =
    ["CEO", "CFO", "VP Sales", "Buyer", "Head of IT", "Operations Manager", "Analyst", "Office Manager"];
const SUBJECTS: [&str; 8] = [
    "Invoice does not match the order",
    "Cannot sign in",
    "Delivery arrived damaged",
    "Question about the renewal",
    "Report shows wrong totals",
    "Need another user licence",
    "Sync stopped overnight",
    "Please change our address",
];

/// Rows of one transaction.
const BATCH: usize = 200;

/// Puts the seed records into the org.
pub(crate) fn plant(state: &mut State, seed: Seed, now_ms: i64) -> Result<()> {
    let mut rng = Rng::new(seed.seed ^ 0x5EED);
    let users = ["Ann Admin", "Bob Seller", "Cleo Support"].map(|name| state.user(name));
    let users: Vec<String> = users.into_iter().flatten().map(Into::into).collect();
    let mut planter = Planter { state, users, now_ms };
    let accounts = planter.plant("Account", seed.accounts, |n| account(&mut rng, n))?;
    let contacts = planter.plant("Contact", seed.contacts, |_| contact(&mut rng, &accounts))?;
    planter.plant("Opportunity", seed.opportunities, |n| opportunity(&mut rng, &accounts, n, now_ms))?;
    planter.plant("Case", seed.cases, |_| case(&mut rng, &contacts))?;
    Ok(())
}

struct Planter<'a> {
    state: &'a mut State,
    users: Vec<String>,
    now_ms: i64,
}

impl Planter<'_> {
    /// Creates `count` records, spread over the past year and the org's people, and gives their ids.
    fn plant(&mut self, object: &str, count: u32, mut make: impl FnMut(u32) -> Json) -> Result<Vec<String>> {
        let missing = || Error::new(Kind::Internal, format!("the org has no {object}"));
        let index = self.state.schema.object(object).ok_or_else(missing)?;
        let records: Vec<Map<String, Json>> =
            (0..count).map(|n| make(n).as_object().cloned().unwrap_or_default()).collect();
        let batches = records.len().div_ceil(BATCH) as i64;
        let mut ids = Vec::with_capacity(records.len());
        for (number, batch) in records.chunks(BATCH).enumerate() {
            let at_ms = self.now_ms - 365 * time::DAY_MS * (batches - number as i64) / batches.max(1);
            let user = self.users.get(number % self.users.len().max(1)).cloned().unwrap_or_default();
            let actor = Actor { user: user.into(), origin: String::new() };
            let ops: Vec<Op<'_>> = batch.iter().map(|fields| Op::Create { object: index, fields }).collect();
            for outcome in transact(self.state, &actor, at_ms, &ops, false) {
                match outcome {
                    Ok(done) => ids.push(done.id.into()),
                    Err(refusal) => {
                        let message =
                            format!("a seed {object} is refused by the org file's rules: {}", refusal.message);
                        return Err(Error::new(Kind::Configuration, message));
                    }
                }
            }
        }
        Ok(ids)
    }
}

fn account(rng: &mut Rng, n: u32) -> Json {
    let (city, state, postal_code, country) = CITIES[rng.below(CITIES.len() as u64) as usize];
    let name = format!("{} {}", rng.pick(&COMPANY_FIRST), rng.pick(&COMPANY_LAST));
    let web = name.to_lowercase().replace(' ', "-");
    json!({
        "Name": name,
        "Type": rng.pick(&["Prospect", "Customer - Direct", "Customer - Channel", "Other"]),
        "Industry": rng.pick(&INDUSTRIES),
        "Rating": rng.pick(&["Hot", "Warm", "Cold"]),
        "AccountNumber": format!("AC-{:06}", n + 1),
        "Phone": phone(rng),
        "Website": format!("https://www.{web}.example"),
        "AnnualRevenue": rng.below(900) * 100_000,
        "NumberOfEmployees": 5 + rng.below(5000),
        "BillingStreet": format!("{} {}", 1 + rng.below(200), rng.pick(&STREETS)),
        "BillingCity": city,
        "BillingState": state,
        "BillingPostalCode": postal_code,
        "BillingCountry": country,
        "Description": format!("{name} has been on our books since {}.", 1998 + rng.below(27)),
    })
}

fn contact(rng: &mut Rng, accounts: &[String]) -> Json {
    let (first, last) = (rng.pick(&FIRST_NAMES), rng.pick(&LAST_NAMES));
    let (city, _, postal_code, country) = CITIES[rng.below(CITIES.len() as u64) as usize];
    let plain: String =
        format!("{first}.{last}").to_lowercase().chars().filter(|c| c.is_ascii_alphabetic() || *c == '.').collect();
    json!({
        "AccountId": one_of(rng, accounts),
        "Salutation": rng.pick(&["Mr.", "Ms.", "Dr."]),
        "FirstName": first,
        "LastName": last,
        "Email": format!("{plain}{}@mail.example", rng.below(1000)),
        "Phone": phone(rng),
        "MobilePhone": phone(rng),
        "Title": rng.pick(&TITLES),
        "Department": rng.pick(&["Finance", "Purchasing", "IT", "Operations"]),
        "Birthdate": time::format_date(-5000 + rng.below(16_000) as i64),
        "MailingCity": city,
        "MailingPostalCode": postal_code,
        "MailingCountry": country,
        "DoNotCall": rng.chance(0.1),
    })
}

fn opportunity(rng: &mut Rng, accounts: &[String], n: u32, now_ms: i64) -> Json {
    let stages = STAGES.map(|stage| stage.0);
    let close = now_ms.div_euclid(time::DAY_MS) - 180 + rng.below(360) as i64;
    json!({
        "AccountId": one_of(rng, accounts),
        "Name": format!("{} {}", rng.pick(&["Renewal", "New order", "Expansion", "Pilot"]), n + 1),
        "StageName": rng.pick(&stages),
        "Amount": (rng.below(50_000_000) as f64) / 100.0,
        "CloseDate": time::format_date(close),
        "Type": rng.pick(&["Existing Business", "New Business"]),
        "LeadSource": rng.pick(&["Web", "Partner Referral", "Other"]),
    })
}

fn case(rng: &mut Rng, contacts: &[String]) -> Json {
    json!({
        "ContactId": one_of(rng, contacts),
        "Subject": rng.pick(&SUBJECTS),
        "Status": rng.pick(&["New", "Working", "Escalated", "Closed"]),
        "Priority": rng.pick(&["High", "Medium", "Low"]),
        "Origin": rng.pick(&["Phone", "Email", "Web"]),
        "Description": format!("Reported on a call. Reference {}.", rng.below(100_000)),
    })
}

fn phone(rng: &mut Rng) -> String {
    format!("+1 555 {:03} {:04}", rng.below(1000), rng.below(10_000))
}

fn one_of(rng: &mut Rng, ids: &[String]) -> Json {
    ids.get(rng.below(ids.len() as u64) as usize).map_or(Json::Null, |id| id.as_str().into())
}
