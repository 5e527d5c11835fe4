//! libpq's password file, which `PGPASSFILE` names: `host:port:database:user:password` in each line. Pure.

/// The password of the first line that fits the connection. `*` fits everything; a backslash takes what follows as it is.
pub(super) fn find(file: &str, host: &str, port: u16, dbname: &str, user: &str) -> Option<String> {
    // libpq knows the default socket as `localhost`.
    let hosts = if host.starts_with('/') { [host, "localhost"] } else { [host, host] };
    let port = port.to_string();
    file.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let fields = fields(line);
        let [given_host, given_port, given_dbname, given_user, password] = fields.as_slice() else { return None };
        let fits = |given: &str, is: &str| given == "*" || given == is;
        let fit = hosts.iter().any(|host| fits(given_host, host))
            && fits(given_port, &port)
            && fits(given_dbname, dbname)
            && fits(given_user, user);
        fit.then(|| password.clone())
    })
}

/// The five fields of a line, or fewer. The password is the rest, colons and all.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut characters = line.trim_end_matches('\r').chars();
    while let Some(c) = characters.next() {
        let c = match c {
            ':' if fields.len() < 5 => {
                fields.push(String::new());
                continue;
            }
            '\\' => characters.next().unwrap_or('\\'),
            c => c,
        };
        if let Some(last) = fields.last_mut() {
            last.push(c);
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_fits_has_the_password() {
        let file = "# db:5432:app:tide:no\n\
                    db:5433:app:tide:other port\n\
                    db:5432:app\n\
                    d\\b:*:app:t\\:de:colon\\:s : and \\\\\r\n\
                    *:*:*:tide:any\n";
        let password = |host, user| find(file, host, 5432, "app", user);
        assert_eq!(password("db", "t:de").as_deref(), Some("colon:s : and \\"));
        assert_eq!(password("db", "tide").as_deref(), Some("any"));
        assert_eq!(password("db", "nobody"), None);
        assert_eq!(find("localhost:*:*:*:x", "/run/postgresql", 1, "a", "b").as_deref(), Some("x"));
        assert_eq!(find("localhost:*:*:*:x", "elsewhere", 1, "a", "b"), None);
    }
}
