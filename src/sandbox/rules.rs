//! The org's own automation: flows that set fields, and rules that refuse records.

use serde_json::Value as Json;

use super::config::{FlowSpec, OrgFile, ValidationSpec};
use super::normalise::normalise;
use super::refusal::Refusal;
use super::schema::{Object, Schema};
use super::soql::{self, Bound, View};
use super::table::{Row, Table, get, put};
use super::value::Value;
use crate::error::{Error, Kind, Result};

/// What a flow sets its field to.
#[derive(Debug, Clone)]
enum Expression {
    Constant(Option<Value>),
    Upper(usize),
    Lower(usize),
    Copy(usize),
    Increment(usize),
    Concat(Vec<Piece>),
}

#[derive(Debug, Clone)]
enum Piece {
    Text(String),
    Field(usize),
}

/// A flow, with its names looked up.
#[derive(Debug, Clone)]
struct Flow {
    object: usize,
    on_create: bool,
    on_update: bool,
    if_changed: Option<usize>,
    only_if: Option<Bound>,
    set: usize,
    to: Expression,
    after: bool,
}

#[derive(Debug, Clone)]
struct Validation {
    object: usize,
    error_if: Bound,
    message: String,
    field: Option<String>,
}

/// All rules of the org.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules {
    flows: Vec<Flow>,
    validations: Vec<Validation>,
}

impl Rules {
    /// The rules of an org file.
    pub(crate) fn new(file: &OrgFile, schema: &Schema, tables: &[Table]) -> Result<Self> {
        let view = View { schema, tables, now_ms: 0 };
        let flows = file.flows.iter().map(|spec| flow(spec, view)).collect::<Result<_>>()?;
        let validations = file.validations.iter().map(|spec| validation(spec, view)).collect::<Result<_>>()?;
        Ok(Self { flows, validations })
    }

    /// Runs the flows of `object` on `row`, which was `before` (nothing for a create); `after` chooses those that run
    /// after the record is saved. Tells whether anything was set.
    pub(crate) fn run(
        &self,
        view: View<'_>,
        object: usize,
        after: bool,
        before: Option<&Row>,
        row: &mut Row,
    ) -> std::result::Result<bool, Refusal> {
        let mut any = false;
        for flow in self.flows.iter().filter(|flow| flow.object == object && flow.after == after) {
            if !flow.fires(view, before, row) {
                continue;
            }
            let field = &view.schema.objects[object].fields[flow.set];
            let result = flow.to.value(row);
            let value = normalise(field, &result.map_or(Json::Null, |v| v.json())).map_err(|refusal| {
                let message = format!("a flow failed to set {}: {}", field.name, refusal.message);
                Refusal::new("CANNOT_INSERT_UPDATE_ACTIVATE_ENTITY", message)
            })?;
            if get(row, flow.set) != value.as_ref() {
                put(row, flow.set, value);
                any = true;
            }
        }
        Ok(any)
    }

    /// Refuses `row` if a validation rule does.
    pub(crate) fn check(&self, view: View<'_>, object: usize, row: &Row) -> std::result::Result<(), Refusal> {
        let broken = self.validations.iter().find(|rule| rule.object == object && rule.error_if.holds(view, row));
        broken.map_or(Ok(()), |rule| {
            let refusal = Refusal::new("FIELD_CUSTOM_VALIDATION_EXCEPTION", rule.message.clone());
            Err(match &rule.field {
                Some(field) => refusal.field(field),
                None => refusal,
            })
        })
    }
}

impl Flow {
    fn fires(&self, view: View<'_>, before: Option<&Row>, row: &Row) -> bool {
        let kind = if before.is_some() { self.on_update } else { self.on_create };
        let changed = |field: usize| before.is_none_or(|before| get(before, field) != get(row, field));
        kind && self.if_changed.is_none_or(changed) && self.only_if.as_ref().is_none_or(|c| c.holds(view, row))
    }
}

impl Expression {
    fn value(&self, row: &Row) -> Option<Value> {
        let text = |field: &usize| get(row, *field).map(Value::plain);
        match self {
            Self::Constant(value) => value.clone(),
            Self::Upper(field) => text(field).map(|t| Value::Text(t.to_uppercase().into())),
            Self::Lower(field) => text(field).map(|t| Value::Text(t.to_lowercase().into())),
            Self::Copy(field) => get(row, *field).cloned(),
            Self::Increment(field) => {
                Some(Value::Double(get(row, *field).and_then(Value::number).unwrap_or_default() + 1.0))
            }
            Self::Concat(pieces) => {
                let parts = pieces.iter().map(|piece| match piece {
                    Piece::Text(text) => text.clone(),
                    Piece::Field(field) => text(field).unwrap_or_default(),
                });
                Some(Value::Text(parts.collect::<String>().into()))
            }
        }
    }

    /// `upper(F)` and the like, or a constant for `target`.
    fn parse(given: &Json, object: &Object, target: usize) -> std::result::Result<Self, String> {
        let field =
            |name: &str| object.field(name.trim()).ok_or_else(|| format!("{} has no field {name}", object.name));
        let call = given.as_str().and_then(|text| text.trim().strip_suffix(')')).and_then(|text| text.split_once('('));
        Ok(match call {
            Some(("upper", arg)) => Self::Upper(field(arg)?),
            Some(("lower", arg)) => Self::Lower(field(arg)?),
            Some(("copy", arg)) => Self::Copy(field(arg)?),
            Some(("increment", arg)) => Self::Increment(field(arg)?),
            Some(("null", "")) => Self::Constant(None),
            Some(("concat", args)) => {
                let piece = |arg: &str| match arg.trim().strip_prefix('\'').and_then(|a| a.strip_suffix('\'')) {
                    Some(text) => Ok(Piece::Text(text.to_owned())),
                    None => field(arg).map(Piece::Field),
                };
                Self::Concat(args.split(',').map(piece).collect::<std::result::Result<_, String>>()?)
            }
            _ => Self::Constant(normalise(&object.fields[target], given).map_err(|refusal| refusal.message)?),
        })
    }
}

fn wrong(message: impl std::fmt::Display) -> Error {
    Error::new(Kind::Configuration, format!("org file: {message}"))
}

fn condition(view: View<'_>, object: usize, text: &str) -> Result<Bound> {
    soql::parse_condition(text)
        .and_then(|condition| soql::bind_condition(view, object, &condition))
        .map_err(|refusal| wrong(format!("the condition {text:?} is not understood: {}", refusal.message)))
}

fn flow(spec: &FlowSpec, view: View<'_>) -> Result<Flow> {
    let missing = || wrong(format!("a flow names the object {}, which is not in the org", spec.object));
    let index = view.schema.object(&spec.object).ok_or_else(missing)?;
    let object = &view.schema.objects[index];
    let field = |name: &str| object.field(name).ok_or_else(|| wrong(format!("{} has no field {name}", object.name)));
    let (on_create, on_update) = match spec.when.as_str() {
        "create" => (true, false),
        "update" => (false, true),
        "both" => (true, true),
        other => return Err(wrong(format!("a flow's `when` is create, update or both, not {other}"))),
    };
    let set = field(&spec.set)?;
    Ok(Flow {
        object: index,
        on_create,
        on_update,
        if_changed: spec.if_changed.as_deref().map(field).transpose()?,
        only_if: spec.only_if.as_deref().map(|text| condition(view, index, text)).transpose()?,
        set,
        to: Expression::parse(&spec.to, object, set).map_err(wrong)?,
        after: spec.after,
    })
}

fn validation(spec: &ValidationSpec, view: View<'_>) -> Result<Validation> {
    let missing = || wrong(format!("a validation rule names the object {}, which is not in the org", spec.object));
    let object = view.schema.object(&spec.object).ok_or_else(missing)?;
    Ok(Validation {
        object,
        error_if: condition(view, object, &spec.error_if)?,
        message: spec.message.clone(),
        field: spec.field.clone(),
    })
}
