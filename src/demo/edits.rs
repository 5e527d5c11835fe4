//! People on both sides, with conflicts and deletes among what they do.

use std::time::Duration;

use serde_json::{Map, Value as Json, json};
use tokio_util::sync::CancellationToken;

use crate::error::Result;
use crate::postgres::connect::{Session, database_error};
use crate::postgres::endpoint::Endpoint;
use crate::sandbox::Running;

/// How many edits were made.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// Edits in PostgreSQL.
    pub postgres: u64,
    /// Edits in Salesforce.
    pub salesforce: u64,
    /// Times that both sides edited one field at the same moment.
    pub clashes: u64,
    /// Records created.
    pub created: u64,
    /// Records deleted.
    pub deleted: u64,
}

/// A small generator of numbers: the same seed gives the same edits.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below.max(1) as u64) as usize
    }

    fn pick<'a, T: ?Sized>(&mut self, items: &[&'a T]) -> &'a T {
        // `roll` is below the length, and the lists here are not empty.
        items[self.roll(items.len())]
    }
}

const PEOPLE: [[&str; 3]; 2] = [["maria", "jonas", "billing-app"], ["Ann Admin", "Bob Seller", "Cleo Support"]];
const TITLES: [&str; 6] = ["Buyer", "Analyst", "Head of IT", "CFO", "Partner Manager", "Office Manager"];
const DEPARTMENTS: [&str; 5] = ["Sales", "Support", "Finance", "Research", "Operations"];
const INDUSTRIES: [&str; 4] = ["Banking", "Energy", "Retail", "Technology"];

/// Edits both sides until cancelled, at about `pause` per edit and side.
pub async fn run(endpoint: Endpoint, org: &Running, pause: Duration, cancel: &CancellationToken) -> Result<Made> {
    let session = Session::open(&endpoint).await?;
    let mut editor = Editor {
        session: &session,
        org,
        dice: Dice(0x2545_f491_4f6c_dd1d),
        made: Made::default(),
        contacts: Vec::new(),
        accounts: Vec::new(),
        born: 0,
    };
    editor.look().await?;
    let mut beat = tokio::time::interval(pause);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut step = 0_u64;
    loop {
        tokio::select! {
            () = cancel.cancelled() => break,
            _ = beat.tick() => {}
        }
        step += 1;
        match step % 60 {
            20 => editor.clash().await?,
            40 => editor.create_in_postgres().await?,
            50 => editor.create_in_salesforce()?,
            55 => editor.delete_in_postgres().await?,
            58 => editor.delete_in_salesforce()?,
            _ => {
                editor.edit_in_postgres().await?;
                editor.edit_in_salesforce()?;
            }
        }
    }
    let made = editor.made;
    session.close().await?;
    Ok(made)
}

struct Editor<'a> {
    session: &'a Session,
    org: &'a Running,
    dice: Dice,
    made: Made,
    contacts: Vec<String>,
    accounts: Vec<String>,
    born: u64,
}

impl Editor<'_> {
    async fn look(&mut self) -> Result<()> {
        self.contacts =
            self.ids("SELECT sfid FROM salesforce.contact WHERE sfid IS NOT NULL ORDER BY id LIMIT 2000").await?;
        self.accounts =
            self.ids("SELECT sfid FROM salesforce.account WHERE sfid IS NOT NULL ORDER BY id LIMIT 2000").await?;
        Ok(())
    }

    async fn ids(&self, sql: &str) -> Result<Vec<String>> {
        let rows = self.session.query(sql, &[]).await.map_err(|e| database_error("looking for records to edit", e))?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    fn one(&mut self, accounts: bool) -> Option<String> {
        let ids = if accounts { &self.accounts } else { &self.contacts };
        let n = self.dice.roll(ids.len());
        ids.get(n).cloned()
    }

    fn phone(&mut self) -> String {
        format!("+49 30 {:07}", self.dice.roll(10_000_000))
    }

    /// Runs one statement in a transaction of a person's own.
    async fn sql(&mut self, statement: &str) -> Result<u64> {
        let person = self.dice.pick(&PEOPLE[0]);
        let text = format!("BEGIN; SELECT set_config('tidelock.actor', '{person}', true); {statement}; COMMIT");
        self.session.batch_execute(&text).await.map_err(|e| database_error("editing a row", e))?;
        self.made.postgres += 1;
        Ok(1)
    }

    /// Commits one operation in the org in a person's name. A record that somebody has just deleted is no error here.
    fn commit(&mut self, operation: Json) -> Result<bool> {
        let person = self.dice.pick(&PEOPLE[1]);
        let body = json!({ "user": person, "operations": [operation] });
        match self.org.admin("POST", "/commit", &body) {
            Ok(_) => self.made.salesforce += 1,
            Err(error) if error.kind() == crate::error::Kind::Refused => return Ok(false),
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    fn update(&mut self, object: &str, id: &str, fields: Json) -> Result<bool> {
        self.commit(json!({ "op": "update", "object": object, "id": id, "fields": fields }))
    }

    async fn edit_in_postgres(&mut self) -> Result<()> {
        let accounts = self.dice.roll(3) == 0;
        let Some(id) = self.one(accounts) else { return Ok(()) };
        let phone = self.phone();
        let statement = if accounts {
            let revenue = self.dice.roll(9_000) as u64 * 1_000;
            format!("UPDATE salesforce.account SET phone = '{phone}', annualrevenue = {revenue} WHERE sfid = '{id}'")
        } else {
            match self.dice.roll(2) {
                0 => format!("UPDATE salesforce.contact SET phone = '{phone}' WHERE sfid = '{id}'"),
                _ => format!("UPDATE salesforce.contact SET title = '{}' WHERE sfid = '{id}'", self.dice.pick(&TITLES)),
            }
        };
        self.sql(&statement).await.map(|_| ())
    }

    fn edit_in_salesforce(&mut self) -> Result<()> {
        let accounts = self.dice.roll(3) == 0;
        let Some(id) = self.one(accounts) else { return Ok(()) };
        let phone = self.phone();
        if accounts {
            let industry = self.dice.pick(&INDUSTRIES);
            self.update("Account", &id, json!({ "Industry": industry, "Phone": phone }))?;
        } else {
            let title = self.dice.pick(&TITLES);
            self.update("Contact", &id, json!({ "Title": title, "MobilePhone": phone }))?;
        }
        Ok(())
    }

    /// Two that differ.
    fn two_of(&mut self, names: &[&str]) -> (String, String) {
        let first = self.dice.roll(names.len());
        let second = (first + 1 + self.dice.roll(names.len() - 1)) % names.len();
        (names[first].to_owned(), names[second].to_owned())
    }

    /// Both sides set one field of one record at the same moment, each without having seen the other.
    async fn clash(&mut self) -> Result<()> {
        let Some(id) = self.one(false) else { return Ok(()) };
        let (column, field, ours, theirs) = match self.dice.roll(3) {
            0 => ("phone", "Phone", self.phone(), self.phone()),
            1 => {
                let (ours, theirs) = self.two_of(&TITLES);
                ("title", "Title", ours, theirs)
            }
            _ => {
                let (ours, theirs) = self.two_of(&DEPARTMENTS);
                ("department", "Department", ours, theirs)
            }
        };
        let mut fields = Map::new();
        fields.insert(field.into(), theirs.into());
        self.update("Contact", &id, Json::Object(fields))?;
        self.sql(&format!("UPDATE salesforce.contact SET {column} = '{ours}' WHERE sfid = '{id}'")).await?;
        self.made.clashes += 1;
        Ok(())
    }

    /// An account and its contact, born in one PostgreSQL transaction before either has a Salesforce id.
    async fn create_in_postgres(&mut self) -> Result<()> {
        self.born += 1;
        let key = format!("demo-{}", self.born);
        self.sql(&format!(
            "INSERT INTO salesforce.account (name, external_id__c, phone) VALUES ('Newcomer {n} Ltd', '{key}-a', '+49 30 1'); \
             INSERT INTO salesforce.contact (lastname, external_id__c, account__external_id__c) VALUES ('Newcomer {n}', '{key}-c', '{key}-a')",
            n = self.born
        ))
        .await?;
        self.made.created += 2;
        Ok(())
    }

    fn create_in_salesforce(&mut self) -> Result<()> {
        let fields = json!({ "FirstName": "Nia", "LastName": format!("Walker {}", self.dice.roll(1_000)), "Phone": self.phone() });
        if self.commit(json!({ "op": "create", "object": "Contact", "fields": fields }))? {
            self.made.created += 1;
        }
        Ok(())
    }

    fn forget(&mut self) -> Option<String> {
        let n = self.dice.roll(self.contacts.len());
        (n < self.contacts.len()).then(|| self.contacts.swap_remove(n))
    }

    async fn delete_in_postgres(&mut self) -> Result<()> {
        let Some(id) = self.forget() else { return Ok(()) };
        self.sql(&format!(
            "DELETE FROM salesforce.contact c WHERE sfid = '{id}' \
             AND NOT EXISTS (SELECT FROM salesforce.\"case\" WHERE contactid = c.sfid)"
        ))
        .await?;
        self.made.deleted += 1;
        Ok(())
    }

    fn delete_in_salesforce(&mut self) -> Result<()> {
        let Some(id) = self.forget() else { return Ok(()) };
        if self.commit(json!({ "op": "delete", "object": "Contact", "id": id }))? {
            self.made.deleted += 1;
        }
        Ok(())
    }
}
