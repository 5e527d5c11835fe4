//! Secrets: never in the file, always from the environment or from a file of their own.

use std::path::{Path, PathBuf};

use secrecy::SecretString;

use super::document::Document;

/// Where secrets and relative paths are looked up.
pub(super) struct Surroundings<'a> {
    /// The environment.
    pub(super) env: &'a dyn Fn(&str) -> Option<String>,
    /// The folder that relative paths start from: the configuration file's.
    pub(super) folder: &'a Path,
}

impl Surroundings<'_> {
    /// A path of the configuration, from the configuration file's folder.
    pub(super) fn path(&self, path: &Path) -> PathBuf {
        self.folder.join(path)
    }

    /// The secret in an environment variable.
    pub(super) fn env_secret(
        &self,
        doc: &mut Document<'_>,
        section: &str,
        key: &str,
        variable: &str,
    ) -> Option<SecretString> {
        match (self.env)(variable) {
            Some(secret) if !secret.is_empty() => Some(SecretString::from(secret)),
            _ => {
                doc.fault(
                    &format!("{section}.{key}"),
                    format!("the environment variable {variable} is not set"),
                    format!("{key} = the name of a variable that is set, or start Tidelock with {variable}=..."),
                );
                None
            }
        }
    }

    /// The secret in a file, without the line ends after it. The path becomes the one that was read.
    pub(super) fn file_secret(
        &self,
        doc: &mut Document<'_>,
        section: &str,
        key: &str,
        path: &mut PathBuf,
    ) -> Option<SecretString> {
        let text = self.read(doc, section, key, path)?;
        let secret = text.trim_end_matches(['\r', '\n']);
        if secret.is_empty() {
            doc.fault(
                &format!("{section}.{key}"),
                format!("the file {} is empty", path.display()),
                format!("{key} = the path of a file that holds the secret alone"),
            );
            return None;
        }
        Some(SecretString::from(secret))
    }

    /// The text of a file. The path becomes the one that was read.
    pub(super) fn read(&self, doc: &mut Document<'_>, section: &str, key: &str, path: &mut PathBuf) -> Option<String> {
        *path = self.path(path);
        match std::fs::read_to_string(&*path) {
            Ok(text) => Some(text),
            Err(error) => {
                doc.fault(
                    &format!("{section}.{key}"),
                    format!("the file {} cannot be read: {error}", path.display()),
                    format!("{key} = the path of a file that this user can read"),
                );
                None
            }
        }
    }
}
