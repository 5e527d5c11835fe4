//! The composition root: configuration -> log -> capture -> replay -> HTTP. The only folder that knows every part.

mod catalog;
mod connect;
mod link;
mod partial;
mod rebuild;
mod schema;
mod supervise;
mod timeline;

use std::path::Path;
use std::sync::Arc;

use crate::audit::Lens;
use crate::change::Catalog;
use crate::error::Result;
use crate::log::ChangeLog;
use crate::log::rocks::{RocksLog, RocksOptions};

pub use catalog::{Described, compile, describe, mappings};
pub use connect::{Org, endpoint, salesforce};
pub use link::{Link, SentAgain};
pub use rebuild::{Outcome, Request, as_of, rebuild};
pub use schema::{Evolution, alter, compare};

/// The id of the log in a directory; none where there is no log.
pub fn log_id(directory: &Path) -> Result<Option<String>> {
    RocksLog::id_in(directory)
}

/// The mappings and rules that a log has in force; none where there is no log, or nothing has been in force yet.
pub fn catalog_in_force(directory: &Path) -> Result<Option<Catalog>> {
    if !RocksLog::exists(directory)? {
        return Ok(None);
    }
    let log = open_log_for_reading(directory)?;
    let catalog = Catalog::clone(&Lens::new(&*log)?.meta().catalog);
    Ok(Some(catalog).filter(|catalog| !catalog.mappings.is_empty()))
}

/// The log as it stands, for reading beside the process that owns it.
pub fn open_log_for_reading(directory: &Path) -> Result<Arc<dyn ChangeLog>> {
    Ok(Arc::new(RocksLog::open_read_only(directory, RocksOptions::default())?))
}

/// An existing log, as its one owner.
pub fn open_existing_log(directory: &Path) -> Result<Arc<dyn ChangeLog>> {
    Ok(Arc::new(RocksLog::open(directory, RocksOptions::default())?))
}

/// A new log.
pub fn open_new_log(directory: &Path) -> Result<Arc<dyn ChangeLog>> {
    Ok(Arc::new(RocksLog::open_or_create(directory, RocksOptions::default())?))
}
