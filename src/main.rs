//! The `tidelock` program.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use tidelock::cli::{Cli, complain, log_output};

/// The exit code of a command that a signal has ended before it was done.
const INTERRUPTED: u8 = 130;

fn main() {
    let cli = Cli::parse();
    let quiet = if cli.is_interactive() { "warn" } else { "info" };
    let filter = EnvFilter::try_from_env("TIDELOCK_LOG").unwrap_or_else(|_| EnvFilter::new(quiet));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(log_output).with_target(false);
    // A log line that nobody reads is lost; saying so to the same nobody would panic.
    let logs = logs.log_internal_errors(false);
    let logs = logs.with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    if std::env::var("TIDELOCK_LOG_FORMAT").is_ok_and(|format| format == "json") {
        logs.json().init();
    } else {
        logs.init();
    }
    let cancel = CancellationToken::new();
    if let Err(error) = listen_for_signals(cancel.clone(), cli.drains()) {
        complain(&format!("cannot listen for signals, so they end it without waiting: {error}"));
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start: {error}"));
            end(1);
        }
    };
    let code = runtime.block_on(cli.main(cancel));
    // Waits for what still reads or writes files, so that destructors run; a second signal ends that, too.
    drop(runtime);
    // Whoever does not read it has gone.
    drop(std::io::stdout().flush());
    end(code);
}

/// Ends the process, without the destructors of C and C++ statics: RocksDB's and OpenSSL-like libraries' would run while
/// threads of ours or theirs may still be at work, which can crash or hang. All that must be undone at the end is undone
/// by values that have been dropped by now, or by others who see us end (see the demo's guardian).
#[allow(unsafe_code, reason = "the only way out that runs nothing; it takes a number and touches no memory")]
fn end(code: u8) -> ! {
    unsafe extern "C" {
        safe fn _exit(status: std::ffi::c_int) -> !;
    }
    _exit(code.into())
}

/// From now on, the first SIGTERM, SIGHUP or Ctrl-C cancels a command that drains; the second, or the first for the others,
/// ends the process whatever it is doing.
///
/// The signals have a thread and a runtime of their own, since the command's may be at its end, waiting for its last files.
fn listen_for_signals(cancel: CancellationToken, drains: bool) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let mut signals = {
        let _inside = runtime.enter();
        let [terminate, interrupt] = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
        let hangup = if ignores_hangup() { None } else { Some(signal(SignalKind::hangup())?) };
        (terminate?, interrupt?, hangup)
    };
    let listen = async move {
        for nth in 0.. {
            let (terminate, interrupt, hangup) = &mut signals;
            let hung_up = async {
                match hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hung_up => {}
            }
            if nth == 0 && drains {
                cancel.cancel();
                continue;
            }
            leave(if drains {
                "stopped without waiting; what was not finished is done at the next start"
            } else {
                "stopped"
            });
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || runtime.block_on(listen))?;
    Ok(())
}

/// Ends the process now, with a word of why, if anybody takes it: standard error may be a full pipe that another thread waits
/// for.
fn leave(why: &'static str) -> ! {
    const PATIENCE: Duration = Duration::from_millis(200);
    let (done, said) = std::sync::mpsc::channel::<()>();
    let saying = std::thread::Builder::new().spawn(move || {
        complain(why);
        drop(done);
    });
    if saying.is_ok() {
        let _said_in_time = said.recv_timeout(PATIENCE).is_ok();
    }
    end(INTERRUPTED);
}

/// Whether we were started to go on after a hang-up (`nohup`).
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}
