//! What must not outlive us: a small `sh` that holds a pipe from us and cleans up when the pipe ends.
//!
//! Destructors do not run when a process is killed, aborted, or ended by a signal that it does not handle, as a test program
//! is by Ctrl-C. The pipe ends however we do, so the guardian sees the end of all of these.

use std::io::Write;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::error::{Error, Kind, Result};

/// Reads one process id per line, an empty line for none, until its input ends. Then it ends that process in the way that
/// PostgreSQL's programs take as "at once", with 10 seconds of patience, and removes the folder, again and again for as long
/// as something still writes to it.
const SCRIPT: &str = r#"
trap '' HUP INT QUIT TERM PIPE
rest() { sleep 0.1 2>/dev/null || sleep 1; }
process=
while read -r line; do process=$line; done
if [ -n "$process" ] && kill -QUIT "$process" 2>/dev/null; then
    n=0
    while [ $n -lt 100 ] && kill -0 "$process" 2>/dev/null; do rest; n=$((n + 1)); done
    kill -KILL "$process" 2>/dev/null
fi
n=0
while rm -rf "$1" 2>/dev/null; [ -e "$1" ] && [ $n -lt 50 ]; do rest; n=$((n + 1)); done
"#;

/// Sees to it that a folder, and a process that works in it, end when we do, however that is.
///
/// Dropping it removes the folder, and ends the process if one is still watched.
#[derive(Debug)]
pub(super) struct Guardian {
    shell: Child,
    pipe: Option<ChildStdin>,
}

impl Guardian {
    /// Watches over `folder`.
    pub(super) fn over(folder: &Path) -> Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, "tidelock-guardian"]).arg(folder).current_dir("/");
        // Whoever reads our output must not have to wait for the guardian to close it.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut shell = command.spawn().map_err(|e| Error::new(Kind::Unavailable, "cannot start `sh`").caused_by(e))?;
        let pipe = shell.stdin.take();
        Ok(Self { shell, pipe })
    }

    /// From now on, `process` is ended with us.
    pub(super) fn watch(&mut self, process: &Child) {
        self.tell(&process.id().to_string());
    }

    /// The process has been waited for: its number may soon be another's.
    pub(super) fn forget(&mut self) {
        self.tell("");
    }

    fn tell(&mut self, line: &str) {
        if let Some(pipe) = &mut self.pipe
            && let Err(error) = writeln!(pipe, "{line}")
        {
            tracing::debug!(%error, "the guardian is gone; only an orderly end cleans up");
        }
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.pipe.take());
        if let Err(error) = self.shell.wait() {
            tracing::debug!(%error, "cannot wait for the guardian");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_process_and_its_folder_end_with_the_pipe() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("with a blank");
        std::fs::create_dir_all(folder.join("below")).unwrap();
        let mut guardian = Guardian::over(&folder).unwrap();
        let mut sleeper = Command::new("sleep").arg("600").spawn().unwrap();
        guardian.watch(&sleeper);
        // What a killed program leaves is a pipe that ended, and nobody who waits.
        drop(guardian.pipe.take());
        let deadline = Instant::now() + Duration::from_secs(20);
        while sleeper.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the process was not ended");
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(guardian);
        assert!(!folder.exists() && parent.path().exists());
    }

    #[test]
    fn a_process_that_is_forgotten_is_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("folder");
        std::fs::create_dir(&folder).unwrap();
        let mut guardian = Guardian::over(&folder).unwrap();
        let mut sleeper = Command::new("sleep").arg("600").spawn().unwrap();
        guardian.watch(&sleeper);
        guardian.forget();
        drop(guardian);
        assert!(!folder.exists());
        assert!(sleeper.try_wait().unwrap().is_none());
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
    }
}
