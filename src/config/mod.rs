//! tidelock.toml: one file per section; load, check, explain.
//!
//! A configuration is checked as a whole before anything starts, and every fault is reported with its line and with
//! what to
//! write. Secrets are never in the file: it names an environment variable or a file, and [`Config::load`] looks them
//! up.
//! Sections are plain data; what they mean is up to the parts that they configure.

mod document;
mod errors;
mod http;
mod link;
mod mapping;
mod passfile;
mod postgres;
mod replay;
mod salesforce;
mod secret;
pub mod suggest;

use std::path::Path;

use schemars::JsonSchema;

use crate::change::{DeletePolicy, InitialMerge, Policy, Side};
use document::Document;
use secret::Surroundings;

pub use errors::{ConfigError, ConfigErrors};
pub use http::Http;
pub use link::{Link, NAME_MAX, SchemaChanges};
pub use mapping::{Access, EVERY_FIELD, FieldConfig, MappingConfig, default_column};
pub use postgres::{Capture, Numbers, Postgres, SslMode};
pub use replay::Replay;
pub use salesforce::{Auth, Salesforce};

/// The annotated example: every key, with its default or its alternatives.
const EXAMPLE: &str = include_str!("example.toml");

/// One link between a Salesforce org and a PostgreSQL database: tidelock.toml as a whole, checked.
#[derive(Debug, Clone, JsonSchema)]
#[schemars(title = "tidelock.toml", deny_unknown_fields)]
pub struct Config {
    /// The link: its name, its change log and its rules.
    pub link: Link,
    /// The database.
    pub postgres: Postgres,
    /// The org.
    pub salesforce: Salesforce,
    /// The HTTP port.
    #[schemars(default)]
    pub http: Http,
    /// Limits of replay.
    #[schemars(default)]
    pub replay: Replay,
    /// What is mapped to what.
    #[schemars(rename = "mapping", length(min = 1))]
    pub mappings: Vec<MappingConfig>,
}

/// What holds for a mapping that says nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkDefaults {
    /// The schema of the tables.
    pub schema: String,
    /// Whose value stands where clocks cannot tell.
    pub system_of_record: Side,
    /// How conflicts end.
    pub policy: Policy,
    /// What wins between a delete and an unseen edit.
    pub delete: DeletePolicy,
    /// Whose values stand when two populated sides are joined.
    pub initial_merge: InitialMerge,
    /// How far apart two commits must be to go by time, in milliseconds.
    pub tolerance_ms: u32,
}

impl Config {
    /// Reads and checks a file, and looks up its secrets. Relative paths start from the file's folder.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| ConfigErrors {
            file: file.clone(),
            errors: vec![ConfigError {
                line: 1,
                what: format!("the file cannot be read: {error}"),
                write: "--config with the path of a file, or make one with `tidelock init`".to_owned(),
            }],
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::read(&text, &file, Some(&Surroundings { env: &|name| std::env::var(name).ok(), folder }))
    }

    /// Checks a text under the name by which faults are to be shown. Neither secrets nor files are looked at.
    pub fn parse(text: &str, name: &str) -> Result<Self, ConfigErrors> {
        Self::read(text, name, None)
    }

    fn read(text: &str, name: &str, around: Option<&Surroundings<'_>>) -> Result<Self, ConfigErrors> {
        let mut doc = Document::new(text, name);
        let mut config = Self {
            link: doc.section("link"),
            postgres: doc.section("postgres"),
            salesforce: doc.section("salesforce"),
            http: doc.section("http"),
            replay: doc.section("replay"),
            mappings: doc.sections("mapping"),
        };
        for section in ["link", "postgres", "salesforce"] {
            if !doc.has(section) {
                doc.fault(section, format!("the section [{section}] is missing"), format!("[{section}]"));
            }
        }
        if doc.has("link") {
            config.link.check(&mut doc, around);
        }
        if doc.has("postgres") {
            config.postgres.check(&mut doc, &config.link.name, around);
        }
        if doc.has("salesforce") {
            config.salesforce.check(&mut doc, around);
        }
        config.http.check(&mut doc);
        config.replay.check(&mut doc);
        mapping::check(&mut config.mappings, &mut doc);
        doc.finish(config)
    }

    /// What holds for a mapping that says nothing else.
    pub fn defaults(&self) -> LinkDefaults {
        LinkDefaults {
            schema: self.postgres.schema.clone(),
            system_of_record: self.link.system_of_record,
            policy: self.link.policy,
            delete: self.link.delete,
            initial_merge: self.link.initial_merge,
            tolerance_ms: self.link.tolerance_ms,
        }
    }
}

/// The annotated example, which parses: a start for a new file.
pub fn example() -> &'static str {
    EXAMPLE
}

/// The JSON Schema of tidelock.toml, as schemas/tidelock.schema.json holds it.
pub fn schema() -> String {
    /// Puts descriptions on one line, and takes out the empty defaults of keys that are derived or required.
    fn tidy(schema: &mut schemars::Schema) {
        if let Some(object) = schema.as_object_mut() {
            if object.get("default").is_some_and(|d| *d == "" || *d == serde_json::json!([]) || d.is_null()) {
                object.remove("default");
            }
            if let Some(serde_json::Value::String(text)) = object.get_mut("description") {
                *text = text.replace('\n', " ");
            }
        }
        schemars::transform::transform_subschemas(&mut tidy, schema);
    }

    let mut schema = schemars::schema_for!(Config);
    tidy(&mut schema);
    let mut text = serde_json::to_string_pretty(&schema).unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests;
