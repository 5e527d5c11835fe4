//! Coming in: OAuth tokens, who a token belongs to, and the login of old SOAP clients.

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Value as Json, json};
use smol_str::SmolStr;

use super::id;
use super::org::Org;
use super::rest::Response;
use super::schema::ID;
use super::state::{Session, State};
use super::table::get;
use super::value::Value;

/// Sessions that are kept; beyond it the ones that end first are dropped.
const MAX_SESSIONS: usize = 10_000;
/// How far a JWT's expiry may lie in the future, in seconds.
const LONGEST_ASSERTION_SECONDS: i64 = 300;

/// An OAuth error: its name, its description, and the HTTP status.
struct Denied(u16, &'static str, &'static str);

impl From<Denied> for Response {
    fn from(Denied(status, error, description): Denied) -> Self {
        Self::new(status, json!({"error": error, "error_description": description}).to_string())
    }
}

const BAD_LOGIN: Denied = Denied(400, "invalid_grant", "authentication failure");
const BAD_CLIENT: Denied = Denied(400, "invalid_client_id", "client identifier invalid");
const BAD_SECRET: Denied = Denied(400, "invalid_client", "invalid client credentials");

/// Answers `/services/oauth2/token`. `basic` is the pair of an HTTP Basic header.
pub(crate) fn token(org: &Org, origin: &str, form: &[(String, String)], basic: Option<(String, String)>) -> Response {
    match grant(org, form, basic) {
        Ok(username) => match org.with(|state| open_session(org, state, &username)) {
            Some((token, user)) => granted(org, origin, &token, &user),
            None => BAD_LOGIN.into(),
        },
        Err(denied) => denied.into(),
    }
}

/// The user name that a grant is for.
fn grant(org: &Org, form: &[(String, String)], basic: Option<(String, String)>) -> Result<String, Denied> {
    let param =
        |name: &str| form.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).unwrap_or_default();
    let (client_id, secret) =
        basic.unwrap_or_else(|| (param("client_id").to_owned(), param("client_secret").to_owned()));
    let client = org.clients.iter().find(|client| client.client_id == client_id);
    match param("grant_type") {
        "client_credentials" => {
            let client = client.ok_or(BAD_CLIENT)?;
            if client.accepts(&secret) { Ok(client.username.clone()) } else { Err(BAD_SECRET) }
        }
        "password" => {
            client.ok_or(BAD_CLIENT)?.accepts(&secret).then_some(()).ok_or(BAD_SECRET)?;
            let person = org.people.iter().find(|p| p.username.eq_ignore_ascii_case(param("username")));
            let person = person.filter(|p| p.accepts(param("password"))).ok_or(BAD_LOGIN)?;
            Ok(person.username.clone())
        }
        "urn:ietf:params:oauth:grant-type:jwt-bearer" => assertion(org, param("assertion")),
        _ => Err(Denied(400, "unsupported_grant_type", "grant type not supported")),
    }
}

/// The user that a signed assertion is for.
fn assertion(org: &Org, token: &str) -> Result<String, Denied> {
    const INVALID: Denied = Denied(400, "invalid_grant", "invalid assertion");
    // The issuer chooses the key, so the claims are read once before they are trusted.
    let payload = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok()).ok_or(INVALID)?;
    let unverified: Json = serde_json::from_slice(&payload).map_err(|_| INVALID)?;
    let issuer = unverified.get("iss").and_then(Json::as_str).unwrap_or_default();
    let client = org.clients.iter().find(|client| client.client_id == issuer).ok_or(BAD_CLIENT)?;
    let pem = client.public_key_pem.as_deref().ok_or(INVALID)?;
    let key = DecodingKey::from_rsa_pem(pem.as_bytes()).map_err(|_| INVALID)?;
    let mut validation = Validation::new(Algorithm::RS256);
    // Some clients send the expiry as text, so it is checked by hand.
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    let claims = jsonwebtoken::decode::<Json>(token, &key, &validation).map_err(|_| INVALID)?.claims;
    let expires = match claims.get("exp") {
        Some(Json::Number(n)) => n.as_f64().map(|n| n as i64),
        Some(Json::String(text)) => text.parse::<f64>().ok().map(|n| n as i64),
        _ => None,
    };
    let now = org.now_ms() / 1000;
    if !expires.is_some_and(|expires| expires > now && expires <= now + LONGEST_ASSERTION_SECONDS) {
        return Err(Denied(400, "invalid_grant", "expired authorization code"));
    }
    let audience = claims.get("aud").and_then(Json::as_str).unwrap_or_default();
    if !audience.starts_with("http") {
        return Err(Denied(400, "invalid_grant", "audience is invalid"));
    }
    let subject = claims.get("sub").or_else(|| claims.get("prn")).and_then(Json::as_str).unwrap_or_default();
    let known = org.with(|state| state.user(subject).is_some());
    if known { Ok(subject.to_owned()) } else { Err(Denied(400, "invalid_grant", "user hasn't approved this consumer")) }
}

/// Makes a session for a user, and gives its token and the user's id.
fn open_session(org: &Org, state: &mut State, username: &str) -> Option<(String, SmolStr)> {
    let user = state.user(username)?;
    let mut bytes = [0_u8; 66];
    rand::fill(&mut bytes).ok()?;
    let (head, tail) = bytes.split_at(12);
    let token = format!("{}!{}.{}", id::short(&org.id), URL_SAFE_NO_PAD.encode(head), URL_SAFE_NO_PAD.encode(tail));
    if state.sessions.len() >= MAX_SESSIONS
        && let Some(first) = state.sessions.iter().min_by_key(|(_, s)| s.expires_ms).map(|(t, _)| t.clone())
    {
        state.sessions.remove(&first);
    }
    let expires_ms = org.now_ms() + org.token_lifetime_ms;
    state.sessions.insert(token.clone(), Session { user: user.clone(), expires_ms });
    Some((token, user))
}

fn instance<'a>(org: &'a Org, origin: &'a str) -> &'a str {
    org.instance_url.as_deref().unwrap_or(origin)
}

fn granted(org: &Org, origin: &str, token: &str, user: &str) -> Response {
    let instance = instance(org, origin);
    let issued_at = org.now_ms().to_string();
    let id = format!("{instance}/id/{}/{user}", org.id);
    let signature = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, format!("{id}{issued_at}").as_bytes());
    let body = json!({
        "access_token": token,
        "instance_url": instance,
        "id": id,
        "token_type": "Bearer",
        "issued_at": issued_at,
        "signature": STANDARD.encode(signature.as_ref()),
        "scope": "api id refresh_token",
    });
    let mut response = Response::ok(body.to_string());
    response.headers.push(("cache-control", "no-store".to_owned()));
    response
}

/// The session of a token that a request carries.
pub(crate) fn session(org: &Org, token: &str) -> Option<Session> {
    let now_ms = org.now_ms();
    org.with(|state| state.session(token, now_ms, org.token_lifetime_ms))
}

/// Answers `/services/oauth2/revoke`.
pub(crate) fn revoke(org: &Org, token: &str) -> Response {
    match org.with(|state| state.sessions.remove(token)) {
        Some(_) => Response::ok(""),
        None => Denied(400, "unsupported_token_type", "this token type is not supported").into(),
    }
}

/// Answers `/services/oauth2/introspect`.
pub(crate) fn introspect(org: &Org, form: &[(String, String)]) -> Response {
    let token = form.iter().find(|(key, _)| key == "token").map(|(_, value)| value.as_str()).unwrap_or_default();
    let found = org.with(|state| state.sessions.get(token).cloned()).filter(|s| s.expires_ms > org.now_ms());
    Response::ok(match found {
        Some(session) => json!({
            "active": true, "scope": "api id refresh_token", "exp": session.expires_ms / 1000, "token_type": "access_token",
            "sub": session.user.as_str(),
        })
        .to_string(),
        None => json!({"active": false}).to_string(),
    })
}

/// Answers `/services/oauth2/userinfo` and the identity URL.
pub(crate) fn identity(org: &Org, origin: &str, session: &Session) -> Response {
    let instance = instance(org, origin);
    let user = session.user.as_str();
    let (username, name, email) = org.with(|state| {
        let text = |field: &str| {
            let object = state.schema.object("User")?;
            let row = state.tables.get(object)?.row(state.find(object, user)?)?;
            get(row, state.schema.objects.get(object)?.field(field).unwrap_or(ID))
                .and_then(Value::text)
                .map(str::to_owned)
        };
        (text("Username"), text("Name"), text("Email"))
    });
    let url = format!("{instance}/id/{}/{user}", org.id);
    let body = json!({
        "sub": url,
        "id": url,
        "user_id": user,
        "organization_id": org.id.as_str(),
        "preferred_username": username,
        "username": username,
        "nickname": username,
        "display_name": name,
        "name": name,
        "email": email,
        "email_verified": true,
        "active": true,
        "user_type": "STANDARD",
        "language": "en_US",
        "locale": "en_US",
        "utcOffset": 0,
        "zoneinfo": "GMT",
        "urls": {
            "rest": format!("{instance}/services/data/v{{version}}/"),
            "sobjects": format!("{instance}/services/data/v{{version}}/sobjects/"),
            "query": format!("{instance}/services/data/v{{version}}/query/"),
            "partner": format!("{instance}/services/Soap/u/{{version}}/{}", org.id),
        },
    });
    Response::ok(body.to_string())
}

/// Answers the login of the SOAP partner API, which knows user name and password alone.
pub(crate) fn soap(org: &Org, origin: &str, version: &str, body: &str) -> Response {
    let version_number = version.split('.').next().and_then(|v| v.parse::<u32>().ok()).unwrap_or_default();
    if version_number >= 65 {
        return fault("UNSUPPORTED_API_VERSION", "login() is not supported in this API version");
    }
    let element = |name: &str| {
        let start = body.find(&format!("{name}>"))? + name.len() + 1;
        let text = body.get(start..)?;
        text.find('<').and_then(|end| text.get(..end)).map(unescape)
    };
    let (username, password) = (element("username").unwrap_or_default(), element("password").unwrap_or_default());
    let person = org.people.iter().find(|p| p.username.eq_ignore_ascii_case(&username) && p.accepts(&password));
    let opened = person.and_then(|person| org.with(|state| open_session(org, state, &person.username)));
    let Some((token, user)) = opened else {
        return fault("INVALID_LOGIN", "Invalid username, password, security token; or user locked out.");
    };
    let instance = instance(org, origin);
    let short = id::short(&org.id);
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><soapenv:Envelope xmlns:soapenv=\"http://schemas.xmlsoap.org/soap/envelope/\" \
         xmlns=\"urn:partner.soap.sforce.com\"><soapenv:Body><loginResponse><result>\
         <metadataServerUrl>{instance}/services/Soap/m/{version}/{short}</metadataServerUrl>\
         <passwordExpired>false</passwordExpired><sandbox>true</sandbox>\
         <serverUrl>{instance}/services/Soap/u/{version}/{short}</serverUrl><sessionId>{token}</sessionId>\
         <userId>{user}</userId><userInfo><organizationId>{}</organizationId><sessionSecondsValid>{}</sessionSecondsValid>\
         <userId>{user}</userId><userName>{}</userName></userInfo></result></loginResponse></soapenv:Body></soapenv:Envelope>",
        org.id,
        org.token_lifetime_ms / 1000,
        person.map_or("", |p| p.username.as_str()),
    );
    xml(200, body)
}

fn fault(code: &str, message: &str) -> Response {
    xml(
        500,
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><soapenv:Envelope \
             xmlns:soapenv=\"http://schemas.xmlsoap.org/soap/envelope/\" xmlns:sf=\"urn:fault.partner.soap.sforce.com\" \
             xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\"><soapenv:Body><soapenv:Fault>\
             <faultcode>sf:{code}</faultcode><faultstring>{code}: {message}</faultstring><detail>\
             <sf:LoginFault xsi:type=\"sf:LoginFault\"><sf:exceptionCode>{code}</sf:exceptionCode>\
             <sf:exceptionMessage>{message}</sf:exceptionMessage></sf:LoginFault></detail></soapenv:Fault></soapenv:Body>\
             </soapenv:Envelope>"
        ),
    )
}

fn xml(status: u16, body: String) -> Response {
    let mut response = Response::new(status, body);
    response.headers.push(("content-type", "text/xml; charset=utf-8".to_owned()));
    response
}

fn unescape(text: &str) -> String {
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&apos;", "'").replace("&amp;", "&")
}

/// The pair of an HTTP Basic header.
pub(crate) fn basic(header: &str) -> Option<(String, String)> {
    let encoded = header.strip_prefix("Basic ")?;
    let text = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
}
