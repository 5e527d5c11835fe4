//! The promises of the change log as properties, over random histories.
//!
//! Two simulated sides, the real state machine, and a log in memory, without threads: edits, deliveries, writes, crashes,
//! answers that are lost and people who decide come in any order. When all is quiet, an oracle that knows what every editor
//! really saw checks that both sides are equal, that nothing was lost in silence, that nothing conflicts where nobody was
//! ahead, that no value returns to where it was replaced, and that the state is the fold of the log.
//!
//! A failure prints its seed: `TIDELOCK_SEED=n` replays that history alone, `TIDELOCK_TRACE=1` tells it step by step.
//! `TIDELOCK_CASES` sets how many histories are tried.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod oracle;
mod rng;
mod sides;
mod worked_example;
mod world;

use rng::Rng;
use world::{Shape, World};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Runs `history` with as many seeds as asked for; those that fail are named.
fn histories(cases: u64, history: impl Fn(u64) -> Result<(), String>) {
    const NAMED_MAX: usize = 20;
    let seeds = match number("TIDELOCK_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TIDELOCK_CASES").unwrap_or(cases),
    };
    let failed = seeds.filter_map(|seed| {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| history(seed)));
        let why = match result {
            Ok(Ok(())) => return None,
            Ok(Err(why)) => why,
            Err(panic) => panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
                .unwrap_or_else(|| "panicked".into()),
        };
        Some(format!("history {seed}: {why}\nreplay it with TIDELOCK_SEED={seed} TIDELOCK_TRACE=1\n"))
    });
    let failed: String = failed.take(NAMED_MAX).collect();
    assert!(failed.is_empty(), "{failed}");
}

/// One history of a shape, from its seed to the checks.
fn history(seed: u64, shape: Shape, edits: usize) -> Result<World, String> {
    let mut world = World::new(seed, shape, edits);
    if shape.seeded {
        world.edits += 2;
        for side in tidelock::change::Side::BOTH {
            for _ in 0..world.rng.below(10) {
                world.step();
            }
            world.backfill(side);
        }
    }
    if shape.calm {
        while world.edits > 0 {
            world.edit();
            for _ in 0..world.rng.below(20) {
                world.step();
            }
            world.settle()?;
        }
    } else {
        let mut steps = 0;
        while world.edits > 0 && steps < 2_000 {
            steps += 1;
            world.step();
        }
        for _ in 0..30 {
            world.step();
        }
    }
    let checked = world.settle().and_then(|()| oracle::check(&mut world)).and_then(|()| oracle::writes(&world));
    if checked.is_err() && std::env::var("TIDELOCK_TRACE").is_ok() {
        oracle::print(&world);
    }
    checked.map(|()| world)
}

#[test]
fn edits_alone_converge_and_none_is_lost() {
    histories(2_000, |seed| {
        let shape = Shape { anonymous: seed % 3 == 0, ..Shape::default() };
        history(seed, shape, 12).map(drop)
    });
}

#[test]
fn calm_histories_have_no_conflicts() {
    histories(500, |seed| {
        let shape = Shape {
            calm: true,
            faults: seed % 3 == 0,
            // Automation is an editor who does not wait.
            automation: false,
            ..Shape::default()
        };
        let world = history(seed, shape, 8)?;
        oracle::calm(&world)
    });
}

#[test]
fn faults_automation_and_refusals_lose_nothing() {
    histories(3_000, |seed| {
        let mut rng = Rng::new(seed ^ 0xfa17);
        let (automation, refusals) = (rng.percent(50), rng.percent(40));
        let (owners, cascades) = (rng.percent(30), rng.percent(50));
        let anonymous = !automation && !cascades && rng.percent(50);
        let shape = Shape { faults: true, automation, refusals, owners, cascades, anonymous, ..Shape::default() };
        history(seed, shape, 12).map(drop)
    });
}

#[test]
fn sides_that_hold_data_already_are_joined_and_gaps_are_mended() {
    histories(2_000, |seed| {
        let mut rng = Rng::new(seed ^ 0xbacf);
        let shape = Shape {
            seeded: rng.percent(70),
            gaps: rng.percent(50),
            faults: rng.percent(50),
            automation: rng.percent(30),
            ..Shape::default()
        };
        history(seed, shape, 10).map(drop)
    });
}

#[test]
fn a_read_only_mapping_is_never_written_to_salesforce() {
    histories(2_000, |seed| {
        let mut rng = Rng::new(seed ^ 0x0ea5);
        let shape = Shape {
            read_only: true,
            nameless: rng.percent(50),
            faults: rng.percent(70),
            automation: rng.percent(30),
            refusals: rng.percent(30),
            gaps: rng.percent(20),
            ..Shape::default()
        };
        let world = history(seed, shape, 12)?;
        match world.plans.iter().find(|(side, _)| *side == tidelock::change::Side::Salesforce) {
            Some((_, write)) => Err(format!("a write to Salesforce: {write:?}")),
            None => Ok(()),
        }
    });
}

/// Streams that are lost, with a server that goes back or not.
fn losses(seed: u64, rewinds: bool) -> Result<(), String> {
    let mut rng = Rng::new(seed ^ 0x1057);
    let shape = Shape {
        losses: true,
        rewinds,
        faults: rng.percent(50),
        automation: rng.percent(30),
        refusals: rng.percent(20),
        ..Shape::default()
    };
    history(seed, shape, 14).map(drop)
}

#[test]
fn a_lost_stream_is_made_up_for() {
    histories(1_500, |seed| losses(seed, false));
}

#[test]
fn a_server_that_went_back_is_made_up_for() {
    histories(1_500, |seed| losses(seed, true));
}
