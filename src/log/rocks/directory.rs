//! The directory of a log: what makes it one, and who owns it.
//!
//! ```text
//! tidelock.log   the marker: format version and the log's own random id
//! tidelock.lock  locked by the process that owns the log; holds its process id
//! db/            RocksDB
//! spool/         of capture: large transactions until they commit; worth nothing after a stop
//! ```
//!
//! The marker is written last when a log is created. So a directory with a marker and without a database has lost it,
//! and is never taken for a new and empty log.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::rand;

use super::failure::files;
use super::wal::{self, Ending};
use crate::error::{Error, Kind, Result};
use crate::log::frame::hex;

/// The format of the directory that this program writes.
pub(super) const FORMAT: u32 = 2;

const MARKER: &str = "tidelock.log";
const LOCK: &str = "tidelock.lock";
const DATABASE: &str = "db";
const TITLE: &str = "tidelock change log";

/// What the marker says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Marker {
    /// The log's own id: 32 hex digits, random.
    pub(super) id: String,
}

impl Marker {
    fn new() -> Result<Self> {
        let mut bytes = [0_u8; 16];
        rand::fill(&mut bytes).map_err(|_| Error::new(Kind::Internal, "the system gives no random numbers"))?;
        Ok(Self { id: hex(&bytes) })
    }

    /// Reads a marker's text; the error is what is wrong with it.
    fn parse(text: &str) -> Result<Self, String> {
        let mut lines = text.lines();
        if lines.next() != Some(TITLE) {
            return Err(format!("its file {MARKER} is not a marker of tidelock"));
        }
        let mut value =
            |name: &str| lines.next().and_then(|l| l.strip_prefix(name)?.strip_prefix(" = ").map(str::to_owned));
        let format = value("format").and_then(|v| v.parse::<u32>().ok());
        match (format, value("id")) {
            (Some(FORMAT), Some(id)) => Ok(Self { id }),
            (Some(format), _) if format != FORMAT => Err(format!(
                "it has format {format}, and this tidelock knows format {FORMAT}; use the version that wrote it, or a newer one"
            )),
            _ => Err(format!("its file {MARKER} is damaged; restore the directory from a backup")),
        }
    }

    fn text(&self) -> String {
        format!("{TITLE}\nformat = {FORMAT}\nid = {}\n", self.id)
    }
}

/// A directory that may hold a log.
#[derive(Debug, Clone)]
pub(super) struct Directory {
    path: PathBuf,
}

impl Directory {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn database(&self) -> PathBuf {
        self.path.join(DATABASE)
    }

    /// The marker, or `None` if there is none.
    pub(super) fn marker(&self) -> Result<Option<Marker>> {
        let path = self.path.join(MARKER);
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => return Err(self.not_a_directory()),
            Err(error) => return Err(files("read", &path, error)),
        };
        Marker::parse(&text).map(Some).map_err(|why| self.unusable(&why))
    }

    /// The marker of a log that must exist, with its database.
    pub(super) fn existing(&self) -> Result<Marker> {
        match fs::metadata(&self.path) {
            Ok(meta) if !meta.is_dir() => return Err(self.not_a_directory()),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(self.missing("the directory does not exist"));
            }
            Err(error) => return Err(files("open", &self.path, error)),
        }
        let marker = self.marker()?.ok_or_else(|| self.missing(&format!("it has no file {MARKER}")))?;
        let current = self.database().join("CURRENT");
        if !current.try_exists().map_err(|e| files("read", &current, e))? {
            let text = format!(
                "the change log in {} has lost its files ({} is missing); restore the directory from a backup",
                self.path.display(),
                current.display()
            );
            return Err(Error::new(Kind::Corrupt, text));
        }
        Ok(marker)
    }

    /// Makes the directory for a new log, or takes an empty one (or one where creating a log was cut short).
    pub(super) fn prepare(&self) -> Result<()> {
        match fs::DirBuilder::new().mode(0o700).create(&self.path) {
            Ok(()) => return self.sync_parent(),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let parent = self.path.parent().unwrap_or(&self.path).display();
                let text = format!(
                    "cannot create the change log in {}: {parent} does not exist; create it, or check the path",
                    self.path.display()
                );
                return Err(Error::new(Kind::Configuration, text));
            }
            Err(error) => return Err(files("create", &self.path, error)),
        }
        if !self.path.is_dir() {
            return Err(self.not_a_directory());
        }
        for item in fs::read_dir(&self.path).map_err(|e| files("list", &self.path, e))? {
            let name = item.map_err(|e| files("list", &self.path, e))?.file_name();
            let ours = [LOCK, DATABASE, "lost+found"].iter().any(|ours| name == *ours)
                || name.to_string_lossy().starts_with(MARKER);
            if !ours {
                return Err(self.unusable(&format!(
                    "it is not a change log and not empty ({} is in it); name an empty or a new directory",
                    name.to_string_lossy()
                )));
            }
        }
        Ok(())
    }

    /// Makes the directory a log, for good. The database must be there and durable.
    pub(super) fn mark(&self) -> Result<Marker> {
        let marker = Marker::new()?;
        let (path, new) = (self.path.join(MARKER), self.path.join(format!("{MARKER}.new")));
        let written = File::create(&new).and_then(|mut file| {
            file.write_all(marker.text().as_bytes())?;
            file.sync_all()
        });
        written.map_err(|e| files("write", &new, e))?;
        fs::rename(&new, &path).map_err(|e| files("write", &path, e))?;
        self.sync()?;
        Ok(marker)
    }

    /// Copies the marker into a checkpoint.
    pub(super) fn mark_copy(&self, to: &Self) -> Result<()> {
        let path = to.path.join(MARKER);
        fs::copy(self.path.join(MARKER), &path)
            .and_then(|_| File::open(&path)?.sync_all())
            .map_err(|e| files("write", &path, e))?;
        to.sync()
    }

    /// The names of the database's files.
    pub(super) fn listing(&self) -> Result<BTreeSet<OsString>> {
        let path = self.database();
        let list = || fs::read_dir(&path)?.map(|item| Ok(item?.file_name())).collect::<std::io::Result<BTreeSet<_>>>();
        list().map_err(|e| files("list", &path, e))
    }

    /// The names of the write-ahead log's files.
    pub(super) fn write_ahead(&self) -> Result<BTreeSet<OsString>> {
        let mut names = self.listing()?;
        names.retain(|name| Path::new(name).extension().is_some_and(|extension| extension == "log"));
        Ok(names)
    }

    /// Looks through the write-ahead log; returns whether it ends in an append that was being written. Damage is an error.
    pub(super) fn inspect_write_ahead(&self) -> Result<bool> {
        let database = self.database();
        if !database.exists() {
            return Ok(false);
        }
        let mut torn = false;
        for name in self.write_ahead()? {
            let path = database.join(name);
            match wal::inspect(&path) {
                Ok(Ending::Whole) => {}
                Ok(Ending::Torn) => torn = true,
                Ok(Ending::Damaged(at)) => return Err(self.damaged(&path, at)),
                // The owner, beside whom this is read, has done with it.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(files("read", &path, error)),
            }
        }
        Ok(torn)
    }

    fn damaged(&self, file: &Path, at: u64) -> Error {
        let text = format!(
            "the change log in {} is not opened: its file {} is damaged from byte {at} on, and the entries behind it would \
             be lost; nothing was changed. Restore the directory from a backup and run `tidelock log verify`, or start the \
             link with a new log (`log` in [link]), so that every row is read again",
            self.path.display(),
            file.display()
        );
        Error::new(Kind::Corrupt, text)
    }

    /// Without this a power cut could take away a new log whose entries are acknowledged.
    fn sync_parent(&self) -> Result<()> {
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|d| d.sync_all()).map_err(|e| files("sync", parent, e))
    }

    fn sync(&self) -> Result<()> {
        File::open(&self.path).and_then(|d| d.sync_all()).map_err(|e| files("sync", &self.path, e))
    }

    /// Becomes the log's owner until the lock is dropped.
    pub(super) fn lock(&self) -> Result<Lock> {
        let path = self.path.join(LOCK);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| files("open", &path, e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                let owner = match file.read_to_string(&mut owner) {
                    Ok(_) if !owner.trim().is_empty() => format!(" (process {})", owner.trim()),
                    _ => String::new(),
                };
                let text = format!(
                    "the change log in {} belongs to another tidelock that is running{owner}; stop that one first, or give \
                     this one a directory of its own",
                    self.path.display()
                );
                return Err(Error::new(Kind::Configuration, text));
            }
            Err(TryLockError::Error(error)) => return Err(files("lock", &path, error)),
        }
        let written = file.set_len(0).and_then(|()| {
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        });
        written.map_err(|e| files("write", &path, e))?;
        Ok(Lock { _file: file })
    }

    fn not_a_directory(&self) -> Error {
        self.unusable("it is not a directory; name a directory")
    }

    fn missing(&self, why: &str) -> Error {
        let text = format!(
            "there is no change log in {}: {why}; check the path, and that this is the machine that tidelock runs on",
            self.path.display()
        );
        Error::new(Kind::Configuration, text)
    }

    fn unusable(&self, why: &str) -> Error {
        Error::new(Kind::Configuration, format!("{} cannot be used as a change log: {why}", self.path.display()))
    }
}

/// The right to write to a log. The operating system takes it back when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}
