//! What an error of RocksDB or of the file system means, in our words.
//!
//! RocksDB hands its errors over as texts; the leading words are its status code, the rest names the file. Everything that
//! looks at such a text is here.

use std::io;
use std::path::Path;

use crate::error::{Error, Kind};

/// What was being done, for the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    Opening,
    Writing,
    Reading,
}

impl Doing {
    const fn text(self) -> &'static str {
        match self {
            Self::Opening => "could not be opened",
            Self::Writing => "could not be written",
            Self::Reading => "could not be read",
        }
    }
}

/// The error for a failure of RocksDB on the log in `directory`.
pub(super) fn rocks(doing: Doing, directory: &Path, error: rocksdb::Error) -> Error {
    let text = error.to_string();
    let missing_file = doing != Doing::Writing && text.contains("No such file or directory");
    let (kind, advice) = if text.contains("No space left on device") || text.contains("Disk quota exceeded") {
        (
            Kind::Storage,
            "its disk is full: free or add space, then start tidelock again; nothing that was acknowledged is lost",
        )
    } else if text.contains("Permission denied") || text.contains("Read-only file system") {
        (Kind::Configuration, "make its directory and files writable for the user that runs tidelock")
    } else if text.contains("Too many open files") {
        (Kind::Configuration, "raise the limit of open files (ulimit -n, or LimitNOFILE of the service) to 65536")
    } else if error.kind() == rocksdb::ErrorKind::Corruption || missing_file {
        (
            Kind::Corrupt,
            "its files are damaged: run `tidelock log verify` for the extent, and restore the directory from a backup",
        )
    } else {
        (Kind::Storage, "check its disk and the system log, then start tidelock again")
    };
    let what = doing.text();
    Error::new(kind, format!("the change log in {} {what}; {advice}", directory.display())).caused_by(error)
}

/// The error for a failure of the file system at `path`.
pub(super) fn files(what: &str, path: &Path, error: io::Error) -> Error {
    let place = path.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Error::new(
            Kind::Configuration,
            format!("no permission to {what} {place}; make it accessible for the user that runs tidelock"),
        ),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Error::new(Kind::Storage, format!("cannot {what} {place}: the disk is full; free or add space"))
        }
        _ => Error::new(Kind::Storage, format!("cannot {what} {place}")),
    }
    .caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_errors_say_what_to_do() {
        let path = Path::new("/data/link");
        for (error, kind, words) in [
            (io::ErrorKind::PermissionDenied, Kind::Configuration, "no permission to create /data/link"),
            (io::ErrorKind::StorageFull, Kind::Storage, "disk is full"),
            (io::ErrorKind::TimedOut, Kind::Storage, "cannot create /data/link"),
        ] {
            let error = files("create", path, error.into());
            assert_eq!(error.kind(), kind);
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
