//! Comparing what a side's rows are with what the log believes, and what follows from a difference.
//!
//! A stream that was lost leaves rows in doubt: nobody tells what was done to them meanwhile. They are read again in order of
//! their keys, each chunk at a place of the side's new stream, and what a row shows is compared with the log's state. A
//! difference goes into the log as what the side holds, and the ordinary rules decide about it.
//!
//! One thing has to be known first: whether the side itself went back, to a backup or as a standby that was behind. Then a
//! difference may be nobody's edit, but what was lost with the side's own log. [`Past`] tells what the side held since the place
//! to which it went back, and [`rewind`] what of a row comes from there: that is written to the side again, and whatever else
//! the row shows was edited by somebody who had not seen what was lost.
//!
//! Pure: entries and states in, findings out.

mod past;
mod rewind;

pub use past::Past;
pub use rewind::{Rewound, Told, rewind};
