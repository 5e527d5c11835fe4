//! Versions, resources, limits and record counts.

use serde_json::{Map, Value as Json, json};

use super::super::state::State;
use super::{Request, Response, VERSIONS};

/// The list of API versions, which needs no session.
pub(crate) fn versions() -> Response {
    let versions: Vec<Json> = VERSIONS
        .map(|version| {
            // Version 68 is the Winter release of 2027; there are three a year.
            let since = 3 * 2027 + version - 68;
            let (year, season) = (since / 3, ["Winter", "Spring", "Summer"][since as usize % 3]);
            let label = format!("{season} '{:02}", year % 100);
            json!({"label": label, "url": format!("/services/data/v{version}.0"), "version": format!("{version}.0")})
        })
        .collect();
    Response::ok(Json::Array(versions).to_string())
}

pub(super) fn resources(request: &Request) -> Response {
    let base = request.base();
    let mut map: Map<String, Json> = ["sobjects", "query", "queryAll", "composite", "jobs", "limits", "tooling"]
        .into_iter()
        .map(|name| (name.to_owned(), format!("{base}/{name}").into()))
        .collect();
    map.insert("identity".to_owned(), format!("{}/id/{}/{}", request.origin, request.org_id, request.user).into());
    Response::ok(Json::Object(map).to_string())
}

pub(super) fn limits(state: &State, request: &Request) -> Response {
    let used = if state.faults.request_limit_exhausted { request.daily_requests } else { state.requests };
    let limit = |max: u64, used: u64| json!({"Max": max, "Remaining": max.saturating_sub(used)});
    let (_, told) = state.log.counts();
    let mut all = json!({
        "DailyApiRequests": limit(request.daily_requests, used),
        "DailyDeliveredPlatformEvents": limit(
            1_000_000,
            if state.faults.event_limit_exhausted { 1_000_000 } else { told },
        ),
    });
    for (name, max) in [
        ("ConcurrentAsyncGetReportInstances", 200),
        ("DailyAsyncApexExecutions", 250_000),
        ("DailyBulkApiBatches", 15_000),
        ("DailyBulkV2QueryFileStorageMB", 976_562),
        ("DailyBulkV2QueryJobs", 10_000),
        ("DailyDurableStreamingApiEvents", 200_000),
        ("DailyGenericStreamingApiEvents", 10_000),
        ("DailyStandardVolumePlatformEvents", 25_000),
        ("DataStorageMB", 11_000),
        ("DurableStreamingApiConcurrentClients", 1000),
        ("FileStorageMB", 11_000),
        ("HourlyPublishedPlatformEvents", 250_000),
        ("HourlyPublishedStandardVolumePlatformEvents", 1000),
        ("HourlyTimeBasedWorkflow", 1000),
        ("MassEmail", 5000),
        ("SingleEmail", 5000),
        ("StreamingApiConcurrentClients", 1000),
    ] {
        all[name] = limit(max, 0);
    }
    Response::ok(all.to_string())
}

pub(super) fn record_count(state: &State, request: &Request) -> Response {
    let names: Vec<&str> = match request.param("sObjects") {
        Some(list) => list.split(',').map(str::trim).collect(),
        None => state.schema.objects.iter().map(|o| o.name.as_str()).collect(),
    };
    let mut counts = Vec::new();
    for name in names {
        let Some(object) = state.schema.object(name) else { continue };
        counts.push(json!({"count": state.tables[object].alive(), "name": state.schema.objects[object].name.as_str()}));
    }
    Response::ok(json!({"sObjects": counts}).to_string())
}
