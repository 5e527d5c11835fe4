//! The worked example: one contact, edited on both sides at the same moment; and the failure that retries.
//!
//! Contact C-001 has the phone 111 on both sides. A program sets it to 222 in the database while a user sets it to 333 in
//! Salesforce. Deliveries are late, come twice, and a restart lies between.

use tidelock::change::{
    Body, ConflictKind, FieldId, ForeignEdit, MappingDef, Policy, Ruling, Side, Str, Subject, Value,
};
use tidelock::ledger::keys;
use tidelock::log::StateRead as _;

use super::oracle;
use super::rng::Rng;
use super::sides::{ID, SECOND};
use super::world::{Shape, World, mapping};

const PHONE: usize = 2;

/// Both sides hold the contact and nothing is under way.
fn contact(policy: Policy) -> World {
    let mut world = empty(mapping(&[policy; 5]));
    let at = world.now();
    world.postgres.user_insert(vec![Value::Null, Value::text("C-001"), Value::text("111")], at);
    assert!(world.quiet());
    world
}

/// Neither side holds anything.
fn empty(mut def: MappingDef) -> World {
    def.fields.retain(|f| usize::from(f.id.0) <= PHONE);
    let catalog = tidelock::change::Catalog {
        mappings: vec![def],
        next_mapping: tidelock::change::MappingId(1),
        ..tidelock::change::Catalog::default()
    };
    World::with(Rng::new(1), Shape::default(), 0, catalog)
}

/// A contact of a mapping that is Salesforce's alone, on both sides.
fn owned_contact() -> World {
    let mut def = mapping(&[Policy::PostgresWins; 5]);
    def.owner = Some(Side::Salesforce);
    def.fields.iter_mut().for_each(|field| field.owner = Some(Side::Salesforce));
    let mut world = empty(def);
    let at = world.now();
    let values = vec![Value::Null, Value::text("C-001"), Value::text("111")];
    world.salesforce.user_insert(values, at, &mut Rng::new(4));
    assert!(world.quiet());
    world
}

/// What the log says was undone: existence and fields.
fn undone(world: &World) -> Vec<(Subject, String, String)> {
    let entries = oracle::entries(&world.log);
    let decisions = entries.into_iter().filter_map(|(_, entry)| match entry.body {
        Body::Decision(d) => {
            assert!(matches!(d.conflict, ConflictKind::ForeignEdit | ConflictKind::InitialMerge), "{d:?}");
            assert_eq!(d.ruling, Ruling::Owner { foreign_edit: ForeignEdit::Revert });
            Some((d.subject, d.winner.to_string(), d.loser.to_string()))
        }
        _ => None,
    });
    decisions.collect()
}

fn nothing_written_to_salesforce(world: &World) {
    assert!(world.plans.iter().all(|(side, _)| *side == Side::Postgres), "{:?}", world.plans);
    assert_eq!(world.salesforce.rows.len(), 1);
}

fn id(world: &World) -> Str {
    world.salesforce.rows.keys().next().unwrap().clone()
}

fn set_in_postgres(world: &mut World, value: &str) {
    let at = world.now();
    let key = *world.postgres.rows.keys().next().unwrap();
    let mut rng = Rng::new(2);
    world.postgres.user_update(key, &[(PHONE, Value::text(value))], false, at, &mut rng);
}

fn set_in_salesforce(world: &mut World, value: &str) {
    let (at, id) = (world.now(), id(world));
    world.salesforce.user_update(&id, &[(PHONE, Value::text(value))], at, &mut Rng::new(3));
}

fn phones(world: &World) -> [Value; 2] {
    let postgres = world.postgres.rows.values().next().unwrap();
    let salesforce = world.salesforce.rows.values().next().unwrap();
    assert_eq!(postgres.values[ID], salesforce.values[ID], "the two are one contact");
    [postgres.values[PHONE].clone(), salesforce.values[PHONE].clone()]
}

/// Who won and who lost by the log's word: the ruling, the winner, the loser.
fn decisions(world: &World) -> Vec<(Ruling, String, String)> {
    let entries = oracle::entries(&world.log);
    let decisions = entries.into_iter().filter_map(|(_, entry)| match entry.body {
        Body::Decision(d) => {
            assert_eq!(d.conflict, ConflictKind::UpdateOriginDiffers);
            Some((d.ruling, d.winner.to_string(), d.loser.to_string()))
        }
        _ => None,
    });
    decisions.collect()
}

/// Both edits, then deliveries in either order, each of them twice, with a restart between.
fn concurrent(policy: Policy, first: Side) -> World {
    let mut world = contact(policy);
    set_in_postgres(&mut world, "222");
    set_in_salesforce(&mut world, "333");
    world.read(first, 1);
    world.commit();
    world.crash();
    world.read(first.other(), 1);
    for side in Side::BOTH {
        world.deliver_all_again(side);
    }
    assert!(world.quiet());
    world
}

#[test]
fn one_value_stands_on_both_sides_and_the_other_is_on_record() {
    for first in Side::BOTH {
        for (policy, stands, loses) in [
            (Policy::SalesforceWins, "333", "222"),
            (Policy::PostgresWins, "222", "333"),
            // Within the tolerance the system of record's stands, which is Salesforce.
            (Policy::LastWriteWins, "333", "222"),
        ] {
            let mut world = concurrent(policy, first);
            assert_eq!(phones(&world), [Value::text(stands), Value::text(stands)], "{policy:?}, {first} first");
            assert_eq!(decisions(&world), [(Ruling::Policy { policy }, stands.into(), loses.into())], "{first} first");
            oracle::check(&mut world).unwrap();
            oracle::writes(&world).unwrap();
        }
    }
}

#[test]
fn the_later_of_two_far_apart_stands() {
    for first in Side::BOTH {
        let mut world = contact(Policy::LastWriteWins);
        set_in_salesforce(&mut world, "333");
        world.clock.0.fetch_add(60 * SECOND, std::sync::atomic::Ordering::Relaxed);
        set_in_postgres(&mut world, "222");
        world.read(first, 1);
        assert!(world.quiet());
        assert_eq!(phones(&world), [Value::text("222"), Value::text("222")]);
        assert_eq!(decisions(&world).len(), 1);
        oracle::check(&mut world).unwrap();
    }
}

#[test]
fn under_review_both_keep_their_own_until_a_person_decides() {
    for (choice, stands) in [
        (tidelock::causality::apply::Choice::Side(Side::Postgres), "222"),
        (tidelock::causality::apply::Choice::Side(Side::Salesforce), "333"),
        (tidelock::causality::apply::Choice::Value(Value::text("444")), "444"),
    ] {
        let mut world = concurrent(Policy::Review, Side::Salesforce);
        assert_eq!(phones(&world), [Value::text("222"), Value::text("333")], "neither is written over");
        assert_eq!(decisions(&world), [(Ruling::Parked, "333".into(), "222".into())]);
        let parked = world.parked();
        assert_eq!(parked.iter().map(|p| p.1).collect::<Vec<_>>(), [FieldId(PHONE as u16)]);
        world.core.commit().unwrap();
        let open = || world.log.scan_state(&[keys::OPEN_CONFLICT], None, 9).unwrap();
        assert_eq!(open().iter().map(|(key, _)| keys::number(key)).collect::<Vec<_>>(), [parked[0].0.0]);
        world.core.resolve(parked[0].0, &choice, "ann").unwrap();
        world.core.commit().unwrap();
        let open = || world.log.scan_state(&[keys::OPEN_CONFLICT], None, 9).unwrap();
        assert_eq!(open(), [], "what is decided waits no more");
        assert!(world.quiet());
        assert_eq!(phones(&world), [Value::text(stands), Value::text(stands)]);
        assert!(decisions(&world).iter().skip(1).all(|d| matches!(&d.0, Ruling::Person { name } if name == "ann")));
        assert!(world.parked().is_empty());
        oracle::check(&mut world).unwrap();
    }
}

#[test]
fn an_edit_that_has_seen_the_other_is_no_conflict() {
    let mut world = contact(Policy::Review);
    set_in_postgres(&mut world, "222");
    assert!(world.quiet());
    set_in_salesforce(&mut world, "333");
    assert!(world.quiet());
    assert_eq!(phones(&world), [Value::text("333"), Value::text("333")]);
    assert_eq!(decisions(&world), []);
}

/// A write times out after it took effect: it is sent again, takes effect once, and what comes back goes nowhere.
#[test]
fn a_write_that_took_effect_but_was_not_answered_neither_applies_twice_nor_loops() {
    for (crash, edited) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut world = contact(Policy::Review);
        set_in_postgres(&mut world, "222");
        world.read(Side::Postgres, 1);
        let records = world.records();
        assert_eq!(world.plan(Side::Salesforce, &records), 1);
        world.commit();
        world.land_salesforce(true);
        if edited {
            // Somebody has seen the 222 that arrived, and replaces it before the write is sent a second time.
            set_in_salesforce(&mut world, "333");
        }
        if crash {
            world.crash();
        }
        assert!(world.quiet());
        // Sent again it overwrites the 333, which is put back: its author had seen 222, so it is the value that stands.
        let stands = if edited { "333" } else { "222" };
        assert_eq!(phones(&world), [Value::text(stands), Value::text(stands)], "crash {crash}, edited {edited}");
        assert_eq!(decisions(&world), [], "crash {crash}, edited {edited}");
        let tail = world.log.reopen();
        let before = tidelock::log::ChangeLog::tail(&tail);
        assert!(world.quiet());
        assert_eq!(tidelock::log::ChangeLog::tail(&tail), before, "all is quiet, and stays so");
        oracle::check(&mut world).unwrap();
    }
}

#[test]
fn a_row_deleted_in_a_read_only_mapping_is_put_back() {
    for salesforce_edits in [false, true] {
        let mut world = owned_contact();
        let at = world.now();
        let key = *world.postgres.rows.keys().next().unwrap();
        if salesforce_edits {
            // The one who deletes has not seen it; the delete is not the owner's word all the same.
            set_in_salesforce(&mut world, "333");
        }
        world.postgres.user_delete(key, at);
        assert!(world.quiet());
        let stands = if salesforce_edits { "333" } else { "111" };
        assert_eq!(phones(&world), [Value::text(stands), Value::text(stands)]);
        assert_eq!(undone(&world), [(Subject::Existence, "true".into(), "false".into())]);
        nothing_written_to_salesforce(&world);
        oracle::check(&mut world).unwrap();
    }
}

#[test]
fn a_row_inserted_in_a_read_only_mapping_is_removed() {
    let mut world = owned_contact();
    let at = world.now();
    world.postgres.user_insert(vec![Value::Null, Value::text("C-002"), Value::Null], at);
    assert!(world.quiet());
    assert_eq!(world.postgres.rows.len(), 1);
    assert_eq!(phones(&world), [Value::text("111"), Value::text("111")]);
    let external = Subject::Field(FieldId(1));
    let expected = [(Subject::Existence, "false".into(), "true".into()), (external, "null".into(), "C-002".into())];
    assert_eq!(undone(&world), expected);
    nothing_written_to_salesforce(&world);
    oracle::check(&mut world).unwrap();
}

/// Nobody has just created them: they stay, and the records of Salesforce find theirs.
#[test]
fn rows_that_a_read_only_mapping_finds_are_kept() {
    let mut world = owned_contact();
    let id = id(&world);
    let at = world.now();
    world.postgres.rows.clear();
    let mut world = {
        // A new link over the same org, with a table from an earlier time.
        let mut fresh = empty(world.catalog.mappings.remove(0));
        fresh.salesforce = world.salesforce;
        fresh.salesforce.common.stream.clear();
        fresh.postgres.seed(vec![Value::Text(id.clone()), Value::Null, Value::text("222")], at);
        fresh.postgres.seed(vec![Value::Null, Value::text("gone"), Value::text("999")], at);
        fresh
    };
    world.backfill(Side::Postgres);
    assert!(world.quiet());
    assert_eq!(world.plans, []);
    world.backfill(Side::Salesforce);
    assert!(world.quiet());
    let keys: Vec<u64> = world.postgres.rows.keys().copied().collect();
    assert_eq!(keys, [1, 2], "none is written anew");
    assert_eq!(phones(&world), [Value::text("111"), Value::text("111")]);
    assert_eq!(undone(&world), [(Subject::Field(FieldId(PHONE as u16)), "111".into(), "222".into())]);
    nothing_written_to_salesforce(&world);
    // What Salesforce says of them goes: it deletes one.
    let at = world.now();
    world.salesforce.user_delete(&id, at, &mut Rng::new(5));
    assert!(world.quiet());
    assert_eq!(world.postgres.rows.keys().copied().collect::<Vec<_>>(), [2]);
}

/// Two links on one org, each with a log that numbers its records from 0: what they make up to name them by must differ, or
/// two rows would share one record. A log keeps to what it began with.
#[test]
fn logs_name_their_records_differently() {
    let named = |prefix: &str, later: &str| {
        let mut world = empty(mapping(&[Policy::PostgresWins; 5]));
        for prefix in [prefix, later] {
            let catalog = tidelock::change::Catalog { external_id_prefix: Str::new(prefix), ..world.catalog.clone() };
            world.core.configure(&catalog).unwrap();
        }
        let at = world.now();
        world.postgres.user_insert(vec![Value::Null, Value::Null, Value::text("111")], at);
        assert!(world.quiet());
        world.salesforce.rows.values().next().unwrap().values[1].to_string()
    };
    assert_eq!(named("0a1b", "0a1b"), "tidelock-0a1b-contact-0");
    assert_eq!(named("2c3d", "0a1b"), "tidelock-2c3d-contact-0");
}
