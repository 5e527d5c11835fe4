//! Opening a replication connection: startup packet, authentication, parameters.

use std::io;

use bytes::BytesMut;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::frontend;
use secrecy::ExposeSecret;
use tokio::io::{AsyncRead, AsyncWrite};

use super::frame::WireError;
use super::replication::Replication;
use super::server_error::ServerError;
use crate::error::{Error, Kind, Result};
use crate::postgres::connect::{
    BoxedStream, Encryption, INVALID_AUTHORIZATION, attempts, broken, login_refused, open_stream, timed_out,
};
use crate::postgres::endpoint::Endpoint;

/// Why a replication connection did not come up, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    /// The stream broke.
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    /// The server sent what the protocol does not allow.
    #[error(transparent)]
    Protocol(#[from] WireError),
    /// The server refused.
    #[error(transparent)]
    Refused(#[from] ServerError),
    /// The server wants a password and none is configured.
    #[error("the server wants a password and none is configured")]
    NoPassword,
    /// The server asks for a way of authentication that is not supported.
    #[error("the server asks for authentication by {0}, which is not supported; use scram-sha-256 in its pg_hba.conf")]
    Unsupported(&'static str),
    /// The server did not prove that it knows the password.
    #[error("the server did not prove that it knows the password: {0}")]
    NotTrusted(io::Error),
}

impl ReplicationError {
    /// The same for a person, with where it happened and what to do.
    pub fn at(self, endpoint: &Endpoint) -> Error {
        match self {
            Self::Broken(error) => broken(endpoint, "logging in", error),
            Self::Refused(error) => login_refused(endpoint, &error.code, &error.message).caused_by(error),
            Self::Protocol(error) => {
                let message = format!("PostgreSQL at {endpoint} does not keep to the protocol: {error}");
                Error::new(Kind::Protocol, message).caused_by(error)
            }
            other @ (Self::NoPassword | Self::Unsupported(_) | Self::NotTrusted(_)) => {
                Error::new(Kind::Denied, format!("cannot log in to PostgreSQL at {endpoint}: {other}"))
            }
        }
    }
}

/// Opens a connection for logical replication, within the endpoint's `connect_timeout`.
pub async fn connect(endpoint: &Endpoint) -> Result<Replication<BoxedStream>> {
    match tokio::time::timeout(endpoint.connect_timeout, connect_untimed(endpoint)).await {
        Ok(connected) => connected,
        Err(_) => Err(timed_out(endpoint)),
    }
}

async fn connect_untimed(endpoint: &Endpoint) -> Result<Replication<BoxedStream>> {
    let mut first = None;
    for encryption in attempts(endpoint) {
        let stream = match open_stream(endpoint, *encryption).await {
            Ok(stream) => stream,
            Err(error) if *encryption == Encryption::IfOffered && error.kind() != Kind::Unavailable => {
                first = first.or(Some(error));
                continue;
            }
            Err(error) => return Err(first.unwrap_or(error)),
        };
        match Replication::start(stream, endpoint).await {
            Ok(replication) => return Ok(replication),
            Err(failure) => {
                let again = matches!(&failure, ReplicationError::Refused(e) if e.code == INVALID_AUTHORIZATION);
                let error = first.take().unwrap_or_else(|| failure.at(endpoint));
                if !again {
                    return Err(error);
                }
                first = Some(error);
            }
        }
    }
    Err(first.unwrap_or_else(|| Error::new(Kind::Internal, "no way to connect was tried")))
}

/// How values are to print and that warnings come, whatever the server's, database's or role's defaults are.
const PARAMETERS: [(&str, &str); 9] = [
    ("replication", "database"),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, YMD"),
    ("TimeZone", "UTC"),
    ("IntervalStyle", "postgres"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("xmloption", "content"),
    ("client_min_messages", "warning"),
];

impl<S: AsyncRead + AsyncWrite + Unpin> Replication<S> {
    /// Logs in over a connected stream. The caller bounds the time.
    pub async fn start(stream: S, endpoint: &Endpoint) -> Result<Self, ReplicationError> {
        let mut connection = Self::over(stream);
        let own = [
            ("user", endpoint.user.as_str()),
            ("database", endpoint.database.as_str()),
            ("application_name", endpoint.application_name.as_str()),
        ];
        frontend::startup_message(own.into_iter().chain(PARAMETERS), connection.output())?;
        connection.flush().await?;
        connection.authenticate(endpoint).await?;
        connection.wait_until_ready().await?;
        Ok(connection)
    }

    async fn authenticate(&mut self, endpoint: &Endpoint) -> Result<(), ReplicationError> {
        const BAD: WireError = WireError::Malformed("authentication request");
        loop {
            let (tag, body) = self.control_frame().await?;
            if tag != b'R' {
                return Err(WireError::Unexpected { tag, doing: "authenticating" }.into());
            }
            let (kind, rest) = body.split_first_chunk::<4>().ok_or(BAD)?;
            match u32::from_be_bytes(*kind) {
                0 => return Ok(()),
                3 => {
                    let password = password(endpoint)?.to_owned();
                    frontend::password_message(password.as_bytes(), self.output())?;
                    self.flush().await?;
                }
                5 => {
                    let salt: [u8; 4] = rest.try_into().map_err(|_| BAD)?;
                    let hash = md5_hash(endpoint.user.as_bytes(), password(endpoint)?.as_bytes(), salt);
                    frontend::password_message(hash.as_bytes(), self.output())?;
                    self.flush().await?;
                }
                10 => self.scram(endpoint, rest).await?,
                7 | 8 => return Err(ReplicationError::Unsupported("Kerberos (GSSAPI)")),
                9 => return Err(ReplicationError::Unsupported("SSPI")),
                _ => return Err(ReplicationError::Unsupported("an unknown method")),
            }
        }
    }

    async fn scram(&mut self, endpoint: &Endpoint, mechanisms: &[u8]) -> Result<(), ReplicationError> {
        let offered = mechanisms.split(|b| *b == 0).any(|name| name == sasl::SCRAM_SHA_256.as_bytes());
        if !offered {
            return Err(ReplicationError::Unsupported("a SASL mechanism other than SCRAM-SHA-256"));
        }
        let password = password(endpoint)?;
        let mut scram = sasl::ScramSha256::new(password.as_bytes(), sasl::ChannelBinding::unsupported());
        frontend::sasl_initial_response(sasl::SCRAM_SHA_256, scram.message(), self.output())?;
        self.flush().await?;
        let challenge = self.sasl_step(11).await?;
        scram.update(&challenge).map_err(ReplicationError::NotTrusted)?;
        frontend::sasl_response(scram.message(), self.output())?;
        self.flush().await?;
        let proof = self.sasl_step(12).await?;
        scram.finish(&proof).map_err(ReplicationError::NotTrusted)
    }

    async fn sasl_step(&mut self, expected: u32) -> Result<BytesMut, ReplicationError> {
        let (tag, body) = self.control_frame().await?;
        match body.split_first_chunk::<4>() {
            Some((kind, rest)) if tag == b'R' && u32::from_be_bytes(*kind) == expected => Ok(BytesMut::from(rest)),
            _ => Err(WireError::Unexpected { tag, doing: "authenticating by SCRAM" }.into()),
        }
    }

    /// Takes what the server tells about itself until it is ready for a query.
    async fn wait_until_ready(&mut self) -> Result<(), ReplicationError> {
        loop {
            let (tag, body) = self.control_frame().await?;
            match tag {
                b'Z' => return Ok(()),
                b'K' | b'v' => {}
                b'S' => {
                    let mut parts =
                        body.as_ref().split(|b: &u8| *b == 0).map(|p| String::from_utf8_lossy(p).into_owned());
                    if let (Some(name), Some(value)) = (parts.next(), parts.next()) {
                        self.note_parameter(name, value);
                    }
                }
                _ => return Err(WireError::Unexpected { tag, doing: "logging in" }.into()),
            }
        }
    }
}

fn password(endpoint: &Endpoint) -> Result<&str, ReplicationError> {
    endpoint.password.as_ref().map(ExposeSecret::expose_secret).ok_or(ReplicationError::NoPassword)
}
