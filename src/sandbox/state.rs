//! All that the org knows, behind one lock: objects, rows, events, sessions, faults. A request holds the lock for as
//! long as it works on rows and never while it waits, so that every request is one step.

use std::collections::{HashMap, VecDeque};

use serde_json::json;
use smol_str::SmolStr;

use super::avro::Plan as EventPlan;
use super::config::{Config, NoOpUpdate, Person};
use super::events::EventLog;
use super::faults::Faults;
use super::refusal::Refusal;
use super::rest::Job;
use super::rng::Rng;
use super::rules::Rules;
use super::schema::{ID, Schema};
use super::soql::{Plan, View};
use super::table::{Table, get};
use super::value::Value;
use super::write::{Actor, Op, Step, transact};
use super::{orgfile, seed};
use crate::error::{Error, Kind, Result};

/// What of the configuration the work on rows needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) no_op_update: NoOpUpdate,
    pub(crate) merge_events: bool,
    pub(crate) diff_fields: bool,
    pub(crate) overflow_changes: usize,
}

/// A client that has come in.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) user: SmolStr,
    pub(crate) expires_ms: i64,
}

/// A query that is being paged through.
#[derive(Debug)]
pub(crate) struct Cursor {
    pub(crate) locator: String,
    pub(crate) user: SmolStr,
    pub(crate) plan: Plan,
    pub(crate) rows: Vec<usize>,
    pub(crate) batch: usize,
}

/// Cursors that one user may have open; the oldest is dropped for another.
const CURSORS_PER_USER: usize = 10;

/// The org.
pub(crate) struct State {
    pub(crate) schema: Schema,
    pub(crate) tables: Vec<Table>,
    pub(crate) plans: Vec<EventPlan>,
    pub(crate) rules: Rules,
    pub(crate) log: EventLog,
    pub(crate) faults: Faults,
    pub(crate) rng: Rng,
    pub(crate) settings: Settings,
    pub(crate) sessions: HashMap<String, Session>,
    pub(crate) cursors: VecDeque<Cursor>,
    pub(crate) requests: u64,
    pub(crate) commit_number: i64,
    /// Bulk jobs, the oldest first.
    pub(crate) jobs: Vec<Job>,
    /// The steps of a transaction that is made of several requests.
    pub(crate) open: Option<Vec<Step>>,
    /// Children that went into the recycle bin with a record, by its id.
    pub(crate) cascades: HashMap<SmolStr, Vec<(usize, usize)>>,
}

impl State {
    /// The org as it begins, its users and seed records included.
    pub(crate) fn new(config: &Config, now_ms: i64) -> Result<Self> {
        let schema = orgfile::schema(&config.org)?;
        let tables: Vec<Table> = schema.objects.iter().map(Table::new).collect();
        let rules = Rules::new(&config.org, &schema, &tables)?;
        let mut state = Self {
            plans: Vec::new(),
            schema,
            tables,
            rules: Rules::default(),
            log: EventLog::new(config.max_events, config.retention.as_millis() as i64),
            faults: Faults::default(),
            rng: Rng::new(config.seed.seed),
            settings: Settings {
                no_op_update: config.no_op_update,
                merge_events: config.merge_events,
                diff_fields: config.diff_fields,
                overflow_changes: config.overflow_changes,
            },
            sessions: HashMap::new(),
            cursors: VecDeque::new(),
            requests: 0,
            commit_number: 11_000_000_000,
            jobs: Vec::new(),
            open: None,
            cascades: HashMap::new(),
        };
        for client in config.clients.iter().chain(&config.org.clients) {
            state
                .add_user(&Person { username: client.username.clone(), ..Person::named("Integration User") }, now_ms)?;
        }
        for person in config.users.iter().chain(&config.org.users) {
            state.add_user(person, now_ms)?;
        }
        seed::plant(&mut state, config.seed, now_ms)?;
        // Only what happens from now on is automated and told.
        state.rules = rules;
        state.plan_events();
        Ok(state)
    }

    /// Makes the event records fit the objects. Called again when the objects have changed.
    pub(crate) fn plan_events(&mut self) {
        self.plans = self.schema.objects.iter().map(EventPlan::of).collect();
        for plan in &self.plans {
            self.log.add_schema(plan.schema_id.clone(), plan.schema_json.clone());
        }
    }

    /// What queries see.
    pub(crate) fn view(&self, now_ms: i64) -> View<'_> {
        View { schema: &self.schema, tables: &self.tables, now_ms }
    }

    /// The object called `name`.
    pub(crate) fn object(&self, name: &str) -> Result<usize, Refusal> {
        self.schema.object(name).ok_or_else(|| Refusal::no_object(name).status(404))
    }

    /// The value of a field of a record, as text.
    pub(crate) fn text(&self, object: usize, position: usize, field: &str) -> Option<&str> {
        let field = self.schema.objects.get(object)?.field(field)?;
        get(self.tables.get(object)?.row(position)?, field)?.text()
    }

    /// The id of the user with this user name, full name or id.
    pub(crate) fn user(&self, who: &str) -> Option<SmolStr> {
        let object = self.schema.object("User")?;
        let table = self.tables.get(object)?;
        let named = |position: usize, field: &str| {
            self.text(object, position, field).is_some_and(|text| text.eq_ignore_ascii_case(who))
        };
        let found =
            table.find(who).or_else(|| (0..table.len()).find(|p| named(*p, "Username") || named(*p, "Name")))?;
        get(table.row(found)?, ID)?.text().map(SmolStr::from)
    }

    /// The user of this name, made if there is none.
    pub(crate) fn user_or_new(&mut self, who: &str, now_ms: i64) -> Result<SmolStr> {
        match self.user(who) {
            Some(id) => Ok(id),
            None => self.add_user(&Person::named(who), now_ms),
        }
    }

    /// Adds a person to the org.
    pub(crate) fn add_user(&mut self, person: &Person, now_ms: i64) -> Result<SmolStr> {
        if let Some(id) = self.user(&person.username) {
            return Ok(id);
        }
        let missing = || Error::new(Kind::Internal, "the org has no User object");
        let object = self.schema.object("User").ok_or_else(missing)?;
        let (first, last) = person.name.rsplit_once(' ').unwrap_or(("", &person.name));
        let alias: String = last.chars().take(8).collect();
        let fields = json!({
            "FirstName": first, "LastName": last, "Username": person.username, "Alias": alias, "IsActive": true,
            "Email": person.username,
        });
        let fields = fields.as_object().cloned().unwrap_or_default();
        let actor = Actor { user: SmolStr::default(), origin: String::new() };
        let outcome = transact(self, &actor, now_ms, &[Op::Create { object, fields: &fields }], true).pop();
        match outcome {
            Some(Ok(done)) => Ok(done.id),
            Some(Err(refusal)) => Err(Error::new(
                Kind::Configuration,
                format!("the user {} cannot be added: {}", person.username, refusal.message),
            )),
            None => Err(Error::new(Kind::Internal, "a transaction of one operation had no outcome")),
        }
    }

    /// The session of a token, which lives on from its use.
    pub(crate) fn session(&mut self, token: &str, now_ms: i64, lifetime_ms: i64) -> Option<Session> {
        let session = self.sessions.get_mut(token)?;
        if session.expires_ms <= now_ms {
            self.sessions.remove(token);
            return None;
        }
        session.expires_ms = now_ms + lifetime_ms;
        Some(session.clone())
    }

    /// Keeps a cursor, dropping its user's oldest if there are too many.
    pub(crate) fn keep_cursor(&mut self, cursor: Cursor) {
        let open = self.cursors.iter().filter(|c| c.user == cursor.user).count();
        if open >= CURSORS_PER_USER
            && let Some(oldest) = self.cursors.iter().position(|c| c.user == cursor.user)
        {
            self.cursors.remove(oldest);
        }
        self.cursors.push_back(cursor);
    }

    /// A record of `object` by its 18-character id, deleted ones included.
    pub(crate) fn find(&self, object: usize, id: &str) -> Option<usize> {
        self.tables.get(object)?.find(id)
    }

    /// The 18-character id of the record at `position`.
    pub(crate) fn id_at(&self, object: usize, position: usize) -> &str {
        let row = self.tables.get(object).and_then(|table| table.row(position));
        row.and_then(|row| get(row, ID)).and_then(Value::text).unwrap_or_default()
    }
}
