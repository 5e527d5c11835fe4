//! What must hold in the org before a link runs, found out by asking: each finding says what is wrong and what to do.
//!
//! Nothing is written to the org. [`check`] asks; [`check_mapping`] and the others that judge are pure. Whether the Pub/Sub API
//! lets us subscribe is asked through a function, so that nothing here depends on that client.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value as Json;

use super::describe::Describer;
use super::limits::{Allocation, Headroom};
use super::rest::{Rest, Rows};
use crate::change::{Catalog, FieldDef, FieldKind, MappingDef, Side};
use crate::error::{Error, Kind, Result};
use crate::mapping::{Finding, SobjectDescription, SobjectField};

/// How much of an allocation is used when a warning is due, in percent.
const FULL_FROM_PERCENT: u64 = 70;

/// The topic that tells of one object's changes.
pub fn change_topic(sobject: &str) -> String {
    format!("/data/{}", change_entity(sobject))
}

fn change_entity(sobject: &str) -> String {
    match sobject.strip_suffix("__c") {
        Some(stem) => format!("{stem}__ChangeEvent"),
        None => format!("{sobject}ChangeEvent"),
    }
}

/// Asks the org everything that a link with this catalog needs.
///
/// `may_subscribe` answers whether the user may subscribe to a topic (`GetTopic` of the Pub/Sub API: found, and
/// `can_subscribe`); an error of configuration or permission says that they may not. `channel` is the event channel in use, if it is not the standard one: `Name__chn`.
pub async fn check<F, Answer>(rest: &Rest, catalog: &Catalog, channel: Option<&str>, may_subscribe: F) -> Vec<Finding>
where
    F: Fn(String) -> Answer,
    Answer: Future<Output = Result<bool>>,
{
    let mut findings = Vec::new();
    match check_login(rest).await {
        Ok(found) => findings.extend(found),
        Err(error) => {
            let advice = "nothing else can be checked before the login works";
            findings.push(Finding::error("login", error.explain(), advice));
            return findings;
        }
    }
    findings.extend(check_version(rest).await);
    findings.extend(match Headroom::fetch(rest).await {
        Ok(headroom) => check_headroom(&headroom),
        Err(error) => vec![unasked("limits", &error)],
    });
    let (described, found) = describe_all(rest, catalog).await;
    findings.extend(found);
    for mapping in &catalog.mappings {
        if let Some(description) = described.get(&mapping.sobject) {
            findings.extend(check_mapping(mapping, description, &described));
        }
    }
    findings.extend(check_events(rest, catalog, channel, may_subscribe).await);
    findings
}

fn unasked(about: &str, error: &Error) -> Finding {
    let advice = match error.kind() {
        Kind::Unavailable | Kind::Limited => "check again later",
        _ => "check the integration user's permissions",
    };
    Finding::warning(about, format!("could not be checked: {}", error.explain()), advice)
}

async fn check_login(rest: &Rest) -> Result<Vec<Finding>> {
    let session = rest.auth().session().await?;
    let (org, user) = (session.organization_id(), session.user_id());
    let mut findings = vec![Finding::ok("login", format!("org {org} at {}", session.instance_url()))];
    let profile = format!("SELECT Username, Profile.Name FROM User WHERE Id = '{user}'");
    let plain = format!("SELECT Username FROM User WHERE Id = '{user}'");
    let page = match rest.query(Rows::Live, &profile).await {
        Ok(page) => page,
        // Not every user may see profiles.
        Err(_) => match rest.query(Rows::Live, &plain).await {
            Ok(page) => page,
            Err(error) => {
                findings.push(unasked("user", &error.into()));
                return Ok(findings);
            }
        },
    };
    let record = page.records.first();
    let name = record.and_then(|r| r.get("Username")).and_then(Json::as_str).unwrap_or(user);
    let profile = record.and_then(|r| r.get("Profile")).and_then(|p| p.get("Name")).and_then(Json::as_str);
    findings.push(check_user(name, profile));
    Ok(findings)
}

/// Whether the user looks like one that only Tidelock uses.
fn check_user(name: &str, profile: Option<&str>) -> Finding {
    match profile {
        Some(profile) if profile.eq_ignore_ascii_case("System Administrator") => Finding::warning(
            "user",
            format!("{name} has the profile {profile}, as people have"),
            "use a user of its own for Tidelock, with the permissions that it needs: what a person does as the same user looks \
             like Tidelock's own doing in the audit",
        ),
        _ => Finding::ok("user", name),
    }
}

#[derive(Deserialize)]
struct Version {
    version: String,
}

async fn check_version(rest: &Rest) -> Vec<Finding> {
    let path = rest.path("");
    let version = path.trim_end_matches('/').rsplit('v').next().unwrap_or_default();
    let served: Result<Vec<Version>> = match rest.get("/services/data", &[]).await {
        Ok(answer) => answer.json(),
        Err(error) => Err(error.into()),
    };
    match served {
        Ok(served) => vec![judge_version(version, &served)],
        Err(error) => vec![unasked("API version", &error)],
    }
}

fn judge_version(version: &str, served: &[Version]) -> Finding {
    if served.iter().any(|v| v.version == version) {
        return Finding::ok("API version", version);
    }
    let newest = served.last().map_or("unknown", |v| v.version.as_str());
    Finding::error(
        "API version",
        format!("the org does not serve {version}"),
        format!("set api_version to one that it serves; the newest is {newest}"),
    )
}

/// How much is left of what the org allows in a day.
pub fn check_headroom(headroom: &Headroom) -> Vec<Finding> {
    let judge = |about: &str, what: &str, allocation: Allocation, advice: &str| {
        let percent = allocation.used_percent();
        let told = format!("{} of {} {what} in 24 hours are left", allocation.remaining, allocation.max);
        if percent < FULL_FROM_PERCENT {
            return Finding::ok(about, told);
        }
        Finding::warning(about, format!("{told}, {percent}% are used"), advice)
    };
    let mut findings = Vec::new();
    if let Some(allocation) = headroom.api_requests {
        let advice = "find out which integration uses them, or buy more: writes wait when they are used up";
        findings.push(judge("API requests", "API requests", allocation, advice));
    }
    match headroom.delivered_events {
        Some(allocation) => {
            let advice = "map fewer objects, or buy more: changes come late when they are used up";
            findings.push(judge("event deliveries", "event deliveries", allocation, advice));
        }
        None => findings.push(Finding::warning(
            "event deliveries",
            "the org does not tell how many are left",
            "give the user the permission \"View Setup and Configuration\", so that Tidelock can warn in time",
        )),
    }
    findings
}

type Described = BTreeMap<String, Arc<SobjectDescription>>;

/// Describes the mapped objects, and the parents that are named by external ids, by the name that the catalog uses.
async fn describe_all(rest: &Rest, catalog: &Catalog) -> (Described, Vec<Finding>) {
    let describer = Describer::new(rest.clone());
    let mut described = Described::new();
    let mut findings = Vec::new();
    let mut wanted: BTreeSet<String> = catalog.mappings.iter().map(|m| m.sobject.clone()).collect();
    for mapping in &catalog.mappings {
        match describer.describe(&mapping.sobject).await {
            Ok(Some(description)) => {
                let parents = mapping.fields.iter().filter_map(|f| parent_of(f, &description));
                wanted.extend(parents.flat_map(|field| field.reference_to.clone()));
                described.insert(mapping.sobject.clone(), description);
            }
            Ok(None) => findings.push(Finding::error(
                &mapping.sobject,
                "the org has no such object, or the user may not see it",
                "check the API name (custom objects end with __c), and give the user access to the object",
            )),
            Err(error) => findings.push(unasked(&mapping.sobject, &error)),
        }
    }
    for parent in wanted {
        if !described.contains_key(&parent)
            && let Ok(Some(description)) = describer.describe(&parent).await
        {
            described.insert(parent, description);
        }
    }
    (described, findings)
}

/// The reference field that a relationship goes by.
fn parent_of<'a>(field: &FieldDef, description: &'a SobjectDescription) -> Option<&'a SobjectField> {
    match &field.kind {
        FieldKind::Relationship { relationship, .. } => description.relationship(relationship),
        _ => None,
    }
}

/// Judges one mapping by what the org says of its object. `described` holds the parents.
pub fn check_mapping(
    mapping: &MappingDef,
    description: &SobjectDescription,
    described: &BTreeMap<String, Arc<SobjectDescription>>,
) -> Vec<Finding> {
    let mut findings = check_object(&mapping.sobject, description);
    for field in mapping.fields.iter().filter(|field| field.kind != FieldKind::Id) {
        let found = match &field.kind {
            FieldKind::Relationship { relationship, external_id } => {
                check_relationship(&mapping.sobject, relationship, external_id, description, described)
            }
            _ => check_field(&mapping.sobject, field, description),
        };
        findings.extend(found);
    }
    findings.extend(check_external_id(mapping, description));
    findings.extend(check_required(mapping, description));
    if findings.is_empty() {
        let what = format!("{} fields are as the mapping needs them", mapping.fields.len());
        findings.push(Finding::ok(&mapping.sobject, what));
    }
    findings
}

fn check_object(sobject: &str, description: &SobjectDescription) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !description.queryable {
        findings.push(Finding::error(
            sobject,
            "its records cannot be queried",
            "give the user Read and View All Records on the object",
        ));
    }
    for (allowed, verb, permission) in [
        (description.createable, "created", "Create"),
        (description.updateable, "updated", "Edit"),
        (description.deletable, "deleted", "Delete"),
    ] {
        if !allowed {
            findings.push(Finding::warning(
                sobject,
                format!(
                    "its records cannot be {verb} by the user, so that such edits from PostgreSQL become dead letters"
                ),
                format!("give the user {permission} on the object, or let Salesforce own the fields"),
            ));
        }
    }
    findings
}

fn check_field(sobject: &str, field: &FieldDef, description: &SobjectDescription) -> Option<Finding> {
    let about = format!("{sobject}.{}", field.name);
    let Some(found) = description.field(&field.name) else {
        return Some(Finding::error(
            about,
            "there is no such field, or field-level security hides it",
            "check the API name, or make the field visible to the user",
        ));
    };
    match &found.kind {
        None => {
            let what = format!("its type {} has no value that a column can hold", found.sf_type);
            return Some(Finding::error(about, what, "map its parts, or leave it out"));
        }
        Some(kind) if !same_kind(kind, &field.kind) => {
            let what = format!("its type is {} now, and the mapping was made for another", found.sf_type);
            let advice = "start Tidelock again, so that it reads the object anew";
            return Some(Finding::error(about, what, advice));
        }
        Some(_) => {}
    }
    let lacks = match (field.createable && !found.createable, field.updateable && !found.updateable) {
        (false, false) => return None,
        (true, true) => "created or updated",
        (true, false) => "created",
        (false, true) => "updated",
    };
    if field.owner == Some(Side::Salesforce) {
        return None;
    }
    Some(Finding::warning(
        about,
        format!("it cannot be set when a record is {lacks}, so that such edits from PostgreSQL become dead letters"),
        "give the user Edit on the field, or set owner = \"salesforce\"",
    ))
}

/// Whether two kinds have the same canonical values. Lengths and lists of objects may differ.
fn same_kind(one: &FieldKind, other: &FieldKind) -> bool {
    match (one, other) {
        (FieldKind::Number { scale: one }, FieldKind::Number { scale: other }) => one == other,
        _ => std::mem::discriminant(one) == std::mem::discriminant(other),
    }
}

fn check_relationship(
    sobject: &str,
    relationship: &str,
    external_id: &str,
    description: &SobjectDescription,
    described: &BTreeMap<String, Arc<SobjectDescription>>,
) -> Option<Finding> {
    let about = format!("{sobject}.{relationship}.{external_id}");
    let Some(reference) = description.relationship(relationship) else {
        let advice = "check its name: that of a custom lookup ends with __r";
        return Some(Finding::error(about, "the object has no such relationship", advice));
    };
    if reference.reference_to.len() > 1 {
        let what = format!("{} may point to several objects, and an external id does not say which", reference.name);
        return Some(Finding::error(about, what, format!("map {} instead", reference.name)));
    }
    let parent = reference.reference_to.first().and_then(|parent| described.get(parent))?;
    let usable = parent.field(external_id).is_some_and(|field| field.external_id || field.id_lookup);
    (!usable).then(|| {
        let what = format!("{external_id} is not an external id field of {}", parent.name);
        Finding::error(about, what, "name a field of the parent that is marked as External ID")
    })
}

fn check_external_id(mapping: &MappingDef, description: &SobjectDescription) -> Option<Finding> {
    let about = &mapping.sobject;
    let Some(field) = mapping.external_id.and_then(|id| mapping.field(id)) else {
        if !description.createable {
            return None;
        }
        return Some(Finding::warning(
            about,
            "the mapping has no external id, so that a row inserted in PostgreSQL can become two records when an answer is lost",
            "add a text field marked External ID and Unique to the object, map it, and name it as external_id",
        ));
    };
    // A field that is not there has its own finding.
    let found = description.field(&field.name)?;
    let about = format!("{about}.{}", field.name);
    if !found.external_id && !found.id_lookup {
        return Some(Finding::error(
            about,
            "it is not marked External ID, so that Salesforce refuses to match records by it",
            "mark it External ID and Unique, or name another field as external_id",
        ));
    }
    (!found.unique).then(|| {
        Finding::warning(
            about,
            "it is not unique: where several records have the same value, writes by it become dead letters",
            "mark it Unique",
        )
    })
}

/// Fields that a record cannot be created without, and that no column gives.
fn check_required(mapping: &MappingDef, description: &SobjectDescription) -> Option<Finding> {
    if !description.createable {
        return None;
    }
    let given_by_relationship: Vec<&str> =
        mapping.fields.iter().filter_map(|f| parent_of(f, description)).map(|field| field.name.as_str()).collect();
    let missing: Vec<&str> = description
        .fields
        .iter()
        .filter(|f| f.createable && !f.nillable && !f.defaulted_on_create && f.kind != Some(FieldKind::Boolean))
        .map(|f| f.name.as_str())
        .filter(|name| mapping.field_named(name).is_none() && !given_by_relationship.contains(name))
        .collect();
    (!missing.is_empty()).then(|| {
        Finding::warning(
            &mapping.sobject,
            format!("records need {} when they are created, and no column gives it", missing.join(", ")),
            "map it, or give it a default in Salesforce: until then rows inserted in PostgreSQL become dead letters",
        )
    })
}

/// The objects whose changes a channel tells, as the org's setup says; `None` where the user may not see that.
async fn selected_entities(rest: &Rest, channel: &str) -> Option<BTreeSet<String>> {
    let soql = "SELECT EventChannel, SelectedEntity FROM PlatformEventChannelMember";
    let answer = rest.get("tooling/query", &[("q", soql)]).await.ok()?;
    let body: Json = answer.json().ok()?;
    let text = |record: &Json, name: &str| record.get(name).and_then(Json::as_str).map(str::to_owned);
    let members = body.get("records")?.as_array()?;
    let of_channel =
        members.iter().filter(|m| text(m, "EventChannel").is_some_and(|c| c.eq_ignore_ascii_case(channel)));
    Some(of_channel.filter_map(|member| text(member, "SelectedEntity")).collect())
}

async fn check_events<F, Answer>(
    rest: &Rest,
    catalog: &Catalog,
    channel: Option<&str>,
    may_subscribe: F,
) -> Vec<Finding>
where
    F: Fn(String) -> Answer,
    Answer: Future<Output = Result<bool>>,
{
    let selected = selected_entities(rest, channel.unwrap_or("ChangeEvents")).await;
    let sobjects: BTreeSet<&str> = catalog.mappings.iter().map(|m| m.sobject.as_str()).collect();
    let mut findings = Vec::new();
    for sobject in sobjects {
        let is_selected = selected.as_ref().map(|all| all.contains(&change_entity(sobject)));
        let subscribable = may_subscribe(change_topic(sobject)).await;
        findings.push(judge_events(sobject, channel, is_selected, &subscribable));
    }
    findings
}

fn judge_events(
    sobject: &str,
    channel: Option<&str>,
    is_selected: Option<bool>,
    subscribable: &Result<bool>,
) -> Finding {
    let about = format!("{sobject} change events");
    match (is_selected, subscribable) {
        (Some(false), _) => Finding::error(
            about,
            format!("{sobject} is not selected in {}", channel.unwrap_or("the standard channel")),
            format!(
                "select it in Setup, Change Data Capture{}",
                if channel.is_some() { ", in that channel" } else { "" }
            ),
        ),
        (_, Ok(true)) => Finding::ok(&about, format!("{} can be subscribed to", change_topic(sobject))),
        (_, Ok(false)) => unsubscribable(about, sobject, None),
        (_, Err(error)) if matches!(error.kind(), Kind::Configuration | Kind::Denied) => {
            unsubscribable(about, sobject, Some(error))
        }
        (_, Err(error)) => unasked(&about, error),
    }
}

fn unsubscribable(about: String, sobject: &str, error: Option<&Error>) -> Finding {
    let why = error.map(|error| format!(": {}", error.explain())).unwrap_or_default();
    Finding::error(
        about,
        format!("{} cannot be subscribed to{why}", change_topic(sobject)),
        format!("select {sobject} in Setup, Change Data Capture, and give the user View All Records on the object"),
    )
}

#[cfg(test)]
mod tests;
