//! `tidelock plan`: what the configuration and the org ask of the database, and what doing it costs.

use serde_json::{Value as Json, json};

use crate::app::{self, Evolution};
use crate::config::Config;
use crate::error::Result;
use crate::mapping::{Change, Difference, Effect, Remedy, mirror};
use crate::postgres::alter::TableSize;
use crate::postgres::install::Step;

use super::Verdict;
use super::init::{self, Todo};
use super::output::{self, Output};

/// Records that one API call reads.
const ROWS_PER_CALL: i64 = 2_000;

pub(super) async fn run(config: &Config, output: Output) -> Result<Verdict> {
    let org = app::salesforce(config)?;
    let evolution = app::compare(config, &org, init::in_force(config).await?.as_ref()).await?;
    // With a mapping left out, its table would look like one that is not mapped any more.
    let todo = if evolution.has_errors() { Todo::default() } else { init::todo(config, &evolution).await? };
    if output.is_json() {
        output::json(&document(&evolution, &todo))?;
    } else {
        print(&evolution, &todo)?;
    }
    Ok(if evolution.is_to_do() || !todo.is_empty() { Verdict::Problems } else { Verdict::Good })
}

/// What a statement costs.
struct Cost {
    lock: &'static str,
    rewrite: bool,
    scan: bool,
    size: TableSize,
    afterwards: Option<String>,
}

impl Cost {
    fn of_difference(difference: &Difference, effect: Effect, size: TableSize) -> Self {
        let reads_again =
            difference.change == Change::New || (difference.change == Change::Precision && effect == Effect::Rewrite);
        let afterwards = reads_again.then(|| {
            let rows = counted(size);
            format!(
                "a link reads every record again at both sides ({rows}; an API call for each {ROWS_PER_CALL} there)"
            )
        });
        let of_type = difference.change == Change::Picklist;
        let lock = if of_type { "none on the table" } else { "ACCESS EXCLUSIVE" };
        Self { lock, rewrite: effect == Effect::Rewrite, scan: false, size, afterwards }
    }

    fn of_step(step: &Step, evolution: &Evolution) -> Self {
        let schema = |name: &str| {
            let described = &evolution.described.tables;
            described.iter().find(|t| t.table == name).map(|t| mirror::qualified(&t.schema, name)).unwrap_or_default()
        };
        let named = evolution.sizes.iter().find(|(name, _)| step.sql.contains(&schema(name)));
        let size = named.map(|(_, size)| *size).unwrap_or_default();
        let scan = step.sql.starts_with("CREATE INDEX") || step.sql.starts_with("CREATE UNIQUE INDEX");
        Self { lock: if scan { "SHARE" } else { "brief" }, rewrite: false, scan, size, afterwards: None }
    }

    fn text(&self) -> String {
        let size = format!("{}, {}", counted(self.size), bytes(self.size.bytes));
        let what = if self.rewrite {
            format!(
                "writes the whole table anew ({size}, and as much room on disk); nobody reads or writes it meanwhile \
                 ({} lock)",
                self.lock
            )
        } else if self.scan {
            format!("reads the whole table ({size}); nobody writes it meanwhile ({} lock)", self.lock)
        } else if self.lock == "ACCESS EXCLUSIVE" {
            format!("changes the catalogs only ({} lock for an instant)", self.lock)
        } else {
            "changes the catalogs only".to_owned()
        };
        self.afterwards.iter().fold(what, |text, more| format!("{text}; afterwards {more}"))
    }

    fn json(&self) -> Json {
        json!({ "lock": self.lock, "rewrite": self.rewrite, "scan": self.scan, "rows": self.size.rows, "bytes": self.size.bytes,
            "afterwards": self.afterwards, "text": self.text() })
    }
}

fn counted(size: TableSize) -> String {
    size.rows.map_or_else(|| "nobody has counted the rows".to_owned(), |rows| format!("about {rows} rows"))
}

/// A size for people.
fn bytes(bytes: i64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    let mut size = bytes as f64 / 1024.0;
    for unit in UNITS {
        if size < 1024.0 {
            return format!("{size:.0} {unit}");
        }
        size /= 1024.0;
    }
    format!("{size:.0} PB")
}

fn cost(difference: &Difference, evolution: &Evolution) -> Option<Cost> {
    let (_, effect) = difference.statement()?;
    let size = evolution.sizes.get(&difference.table).copied().unwrap_or_default();
    Some(Cost::of_difference(difference, effect, size))
}

fn document(evolution: &Evolution, todo: &Todo) -> Json {
    let differences = evolution.differences.iter().map(|difference| {
        let mut json = json!(difference);
        json["cost"] = json!(cost(difference, evolution).map(|cost| cost.json()));
        json
    });
    let steps = todo.steps.iter().map(|step| {
        let cost = Cost::of_step(step, evolution).json();
        json!({ "reason": step.reason, "sql": step.sql, "cost": cost })
    });
    json!({
        "problems": evolution.problems,
        "differences": differences.collect::<Vec<_>>(),
        "steps": steps.collect::<Vec<_>>(),
        "slot_is_missing": todo.slot_is_missing,
        "slot_is_left_over": todo.slot_is_left_over,
        "to_do": evolution.is_to_do() || !todo.is_empty(),
    })
}

fn print(evolution: &Evolution, todo: &Todo) -> Result<()> {
    for problem in &evolution.problems {
        output::line(&format!("-- {problem}\n"))?;
    }
    for difference in &evolution.differences {
        output::line(&described(difference, evolution))?;
    }
    for step in &todo.steps {
        let cost = Cost::of_step(step, evolution).text();
        output::line(&format!("-- {}\n--   cost: {cost}\n{}\n", step.reason, closed(&step.sql)))?;
    }
    if todo.slot_is_missing {
        output::line("-- and the replication slot is made\n")?;
    }
    if todo.slot_is_left_over {
        output::line("-- and the replication slot is dropped: triggers capture changes\n")?;
    }
    let by_apply = !todo.is_empty() || evolution.differences.iter().any(|d| d.statement().is_some());
    output::line(match (evolution.has_errors(), by_apply, evolution.is_to_do()) {
        (true, _, _) => "nothing was run; the rest is compared when the mappings fit what is there",
        (_, true, _) => {
            "nothing was run; `tidelock init --apply` runs the statements above, each in a transaction of its own"
        }
        (_, false, true) => "nothing was run; what is above is for a person to decide",
        (_, false, false) => "nothing to do: the tables fit the org and the configuration",
    })
}

fn described(difference: &Difference, evolution: &Evolution) -> String {
    let head = format!(
        "-- {}.{} -> {}.{}.{}: {}",
        difference.mapping,
        difference.field,
        difference.schema,
        difference.table,
        difference.column,
        difference.message
    );
    match &difference.remedy {
        Remedy::Apply { sql, attended, .. } => {
            let cost =
                cost(difference, evolution).map_or_else(String::new, |cost| format!("\n--   cost: {}", cost.text()));
            let attended = attended.as_ref().map_or_else(String::new, |why| format!("\n--   mind: {why}"));
            format!("{head}{cost}{attended}\n{}\n", closed(sql))
        }
        Remedy::Person { advice } => format!("{head}\n--   to do: {advice}\n"),
        Remedy::Nothing { advice } => format!("{head}\n--   {advice}\n"),
    }
}

fn closed(sql: &str) -> String {
    format!("{};", sql.trim_end().trim_end_matches(';'))
}
