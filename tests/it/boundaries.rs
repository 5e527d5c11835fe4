//! Connections to PostgreSQL that are cut, go dead, or are slow, at each boundary between two messages of a short session.
//!
//! A proxy stands between the real binary and the server. A session is a start, a few edits on both sides, and an orderly end; one
//! fault is put at one boundary of it. Then both sides must be equal and everything must have been applied exactly once, by the word
//! of a trigger in the database and of the org, not of the log.
//!
//! `TIDELOCK_BOUNDARIES=all` tries all of them, a number tries so many; `TIDELOCK_SEED` chooses others.
#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::json;
use tidelock::change::Catalog;
use tidelock::demo::server::ServerSettings;

use super::link::{Dice, Link, Setup};
use super::proxy::{Boundary, Counts, Direction, Fault, Proxy, Role};

/// How many are tried where nothing else is asked for.
const TRIED: usize = 18;

/// What is done to rows of contacts, by whomever. The org's stamp of a record follows each edit, alone or with other values.
const APPLIED: &str = "
    CREATE TABLE public.applied (n bigserial, what text);
    CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP <> 'UPDATE' OR (NEW.phone, NEW.sfid) IS DISTINCT FROM (OLD.phone, OLD.sfid)
           OR NEW.systemmodstamp IS NOT DISTINCT FROM OLD.systemmodstamp THEN
            INSERT INTO public.applied (what)
            VALUES (concat_ws(' ', TG_OP, coalesce(NEW.external_id__c, OLD.external_id__c), NEW.phone));
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON salesforce.contact FOR EACH ROW EXECUTE FUNCTION public.note();
    ALTER TABLE salesforce.contact ENABLE ALWAYS TRIGGER note;";

const FAULTS: [Fault; 6] =
    [Fault::Cut, Fault::CutWithin, Fault::HalfOpen, Fault::ClientGone, Fault::Delay, Fault::Overtaken];

struct Case {
    link: Link,
    proxy: Proxy,
    catalog: Catalog,
    session: u64,
}

impl Case {
    async fn new(postgres: &str) -> Self {
        let setup = Setup {
            postgres: format!("sslmode = \"disable\"\n{postgres}"),
            // A connection that only the client knows to be gone is noticed by the server soon.
            server: ServerSettings::default().with("wal_sender_timeout", "2s"),
            ..Setup::default()
        };
        let link = Link::new(setup).await;
        let catalog = link.catalog().await;
        let proxy = Proxy::to(&link.server.endpoint()).await;
        let through = proxy.endpoint(&link.server.endpoint());
        std::fs::write(link.config_path(), link.configuration_with(&through, &link.org.url())).unwrap();
        link.sql(APPLIED).await;
        for name in ["of postgres", "of salesforce", "s 0", "p 0"] {
            link.create("Contact", json!({ "LastName": name, "External_ID__c": name }));
        }
        let mut case = Self { link, proxy, catalog, session: 0 };
        // The first session copies what is there.
        case.link.start().await;
        case.link.settle_by(&case.catalog).await;
        case.link.terminate().await;
        case
    }

    /// One session, with a fault or without; the messages that it took.
    async fn run(&mut self, fault: Option<(Boundary, Fault)>) -> Counts {
        self.session += 1;
        let (before, n) = (self.session - 1, self.session);
        self.link.sql("TRUNCATE public.applied").await;
        let told = self.link.events_told();
        self.proxy.begin(fault);
        self.link.start().await;
        self.link
            .sql(&format!(
                "UPDATE salesforce.contact SET phone = 'p {n}' WHERE external_id__c = 'of postgres'; \
                 INSERT INTO salesforce.contact (lastname, external_id__c) VALUES ('Born', 'p {n}'); \
                 DELETE FROM salesforce.contact WHERE external_id__c = 'p {before}'"
            ))
            .await;
        let id = |name: &str| self.link.record("Contact", name).unwrap()["Id"].clone();
        self.link.commit(
            "Bob Seller",
            json!([
                { "op": "update", "object": "Contact", "id": id("of salesforce"), "fields": { "Phone": format!("s {n}") } },
                { "op": "delete", "object": "Contact", "id": id(&format!("s {before}")) },
                { "op": "create", "object": "Contact",
                  "fields": { "LastName": "Born", "External_ID__c": format!("s {n}"), "Phone": format!("s {n}") } },
            ]),
        );
        self.link.settle_by(&self.catalog).await;
        let counts = self.proxy.counts();
        let ended = self.link.terminate().await;
        assert!(ended.success(), "{fault:?}: {ended}");
        self.check(told).await;
        counts
    }

    /// Everything took effect once. The row that was born in PostgreSQL gets its Salesforce id by an update.
    async fn check(&self, told: u64) {
        let (before, n) = (self.session - 1, self.session);
        let expected = [
            format!("DELETE p {before}"),
            format!("DELETE s {before}"),
            format!("INSERT p {n}"),
            format!("INSERT s {n} s {n}"),
            format!("UPDATE of postgres p {n}"),
            format!("UPDATE of salesforce s {n}"),
            format!("UPDATE p {n}"),
        ];
        let rows = self.link.server.query("SELECT what FROM public.applied ORDER BY what COLLATE \"C\"").await.unwrap();
        let rows: Vec<String> = rows.into_iter().flatten().flatten().collect();
        assert_eq!(rows, expected);
        // Three commits of people and three writes of ours, and two of the barrier.
        assert_eq!(self.link.events_told() - told, 8, "what the org was told to do");
    }
}

/// Every fault at every boundary of capture's connection and the target's, and one fault at each of other sessions.
fn every(counts: &Counts) -> Vec<(Boundary, Fault)> {
    let mut all = Vec::new();
    for (&(role, direction), &count) in counts {
        for n in 0..count {
            let faults = if role == Role::Ordinary { &FAULTS[n as usize % FAULTS.len()..][..1] } else { &FAULTS[..] };
            all.extend(faults.iter().map(|fault| (Boundary { role, direction, n }, *fault)));
        }
    }
    all
}

/// So many of them, spread evenly over all.
fn some(all: &[(Boundary, Fault)], count: usize, dice: &mut Dice) -> Vec<(Boundary, Fault)> {
    let start = |n: usize| n * all.len() / count;
    let one = |n: usize| all[start(n) + dice.below((start(n + 1) - start(n)) as u64) as usize];
    (0..count.min(all.len())).map(one).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_fail_at_any_message_lose_and_double_nothing() {
    let mut case = Case::new("").await;
    let counts = case.run(None).await;
    let all = every(&counts);
    let asked = std::env::var("TIDELOCK_BOUNDARIES").unwrap_or_default();
    let seed = std::env::var("TIDELOCK_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let cases = if asked == "all" { all } else { some(&all, asked.parse().unwrap_or(TRIED), &mut Dice::of(seed)) };
    let mut struck = 0;
    for (n, (boundary, fault)) in cases.iter().enumerate() {
        eprintln!("{n} of {}: {fault:?} at {boundary:?}", cases.len());
        case.run(Some((*boundary, *fault))).await;
        struck += usize::from(case.proxy.struck());
        if n % 50 == 49 {
            case.link.verify();
        }
    }
    eprintln!("{counts:?}: {struck} of {} faults came to pass", cases.len());
    // The last messages of a session do not come in each.
    assert!(2 * struck > cases.len(), "{struck} of {} faults came to pass", cases.len());
    case.link.verify();
    assert_eq!(case.link.conflicts(), Vec::<serde_json::Value>::new());
    assert_eq!(case.link.json(&["dead-letters", "list"]), json!([]));
}

/// What TCP never notices: the other end takes everything, and does not answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_nothing_more_is_given_up() {
    let mut case = Case::new("connect_timeout_seconds = 2\n").await;
    let counts = case.run(None).await;
    let role = Role::Ordinary;
    // While the link starts; later the session that writes is among them, and more patient.
    for (direction, eighth) in [(Direction::ToClient, 1), (Direction::ToServer, 3)] {
        let n = counts[&(role, direction)] * eighth / 8;
        case.run(Some((Boundary { role, direction, n }, Fault::Silent))).await;
        assert!(case.proxy.struck(), "{direction:?} {n}");
    }
    case.link.verify();
}
