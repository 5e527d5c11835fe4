//! How far copying has come, for those who watch `tidelock run`: bars on a terminal, and otherwise a line of the log every few
//! seconds.

use std::collections::HashMap;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::status::{Copying, Handle};

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often a line of the log tells of it.
const TELL_EVERY: Duration = Duration::from_secs(3);

static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);
/// How many bars there are.
static SHOWN: AtomicUsize = AtomicUsize::new(0);

/// Standard error, for the log: its lines stand above the bars.
pub fn log_output() -> impl Write {
    LogOutput
}

struct LogOutput;

impl Write for LogOutput {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        if SHOWN.load(Ordering::Relaxed) == 0 {
            return std::io::stderr().write(line);
        }
        BARS.println(String::from_utf8_lossy(line).trim_end())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// Shows how far the copies of the running link have come, for as long as it is asked to.
pub(super) async fn show(link: watch::Receiver<Option<Arc<Handle>>>) -> std::convert::Infallible {
    let mut bars = (!BARS.is_hidden()).then(Bars::default);
    let mut told = None;
    loop {
        let copies = link.borrow().as_ref().map(|handle| handle.copies()).unwrap_or_default();
        match &mut bars {
            Some(bars) => bars.show(copies),
            None if told.is_none_or(|told: Instant| told.elapsed() >= TELL_EVERY) => {
                for Copying { side, mapping, rows, total, .. } in copies.iter().filter(|copy| !copy.finished) {
                    tracing::info!(mapping, from = side, rows, total, "copying rows");
                    told = Some(Instant::now());
                }
            }
            None => {}
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A bar for each copy that is under way, by side and mapping.
#[derive(Default)]
struct Bars(HashMap<(String, String), ProgressBar>);

impl Bars {
    fn show(&mut self, copies: Vec<Copying>) {
        for copy in copies {
            let of = (copy.side, copy.mapping);
            if copy.finished {
                if let Some(bar) = self.0.remove(&of) {
                    bar.finish_and_clear();
                }
            } else {
                let bar = self.0.entry(of).or_insert_with_key(|(side, mapping)| {
                    BARS.add(ProgressBar::no_length().with_message(format!("copying {mapping} from {side}")))
                });
                if copy.total != bar.length() || bar.position() == 0 {
                    bar.set_style(style(copy.total.is_some()));
                    copy.total.into_iter().for_each(|total| bar.set_length(total));
                }
                bar.set_position(copy.rows);
            }
        }
        SHOWN.store(self.0.len(), Ordering::Relaxed);
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.0.values().for_each(ProgressBar::finish_and_clear);
        SHOWN.store(0, Ordering::Relaxed);
    }
}

fn style(has_total: bool) -> ProgressStyle {
    let template =
        if has_total { "{msg:40} {wide_bar} {human_pos}/{human_len} rows" } else { "{msg:40} {human_pos} rows" };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
