//! Judges a server's certificate by a time that this machine can know to be right.
//!
//! The authority is pinned: by the join token, later by what was kept. What it has signed says something of the time as well.
//!
//! - A certificate that is *not valid yet* by this machine's clock was issued all the same: by now it is at least its first moment,
//!   and the clock is behind. So it is judged by that moment. Who stole a key has a certificate of the past, and gains nothing by it:
//!   a clock that is behind takes what is over for valid in any case.
//! - A certificate that is *over* says nothing: either the clock is ahead, or the certificate is an old one, whose key may have been
//!   stolen. It is refused, as no secret is to be shown to who has it, with the least by which the clock would be ahead.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use super::{IdentityError, certificate};
use crate::clock::Skew;

/// Verifies what a server shows, and remembers why not.
pub(super) struct Judge {
    inner: Arc<WebPkiServerVerifier>,
    skew: Mutex<Option<Skew>>,
}

impl fmt::Debug for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Judge").field("skew", &self.skew()).finish_non_exhaustive()
    }
}

impl Judge {
    /// One that trusts these authorities alone, PEM.
    pub(super) fn new(ca_pem: &str, provider: Arc<CryptoProvider>) -> Result<Self, IdentityError> {
        let refused = |error: &dyn fmt::Display| IdentityError::Certificate(error.to_string());
        let mut roots = RootCertStore::empty();
        for authority in certificate::chain(ca_pem)? {
            roots.add(authority).map_err(|error| refused(&error))?;
        }
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        Ok(Self { inner: inner.map_err(|error| refused(&error))?, skew: Mutex::default() })
    }

    /// By how much the clock is ahead at the least, where a certificate was refused that is right but for its end.
    pub(super) fn skew(&self) -> Option<Skew> {
        *self.skew.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verify =
            |at| self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, at);
        let error = match verify(now) {
            Ok(verified) => return Ok(verified),
            Err(error) => error,
        };
        let is_of_time = matches!(
            error,
            Error::InvalidCertificate(
                CertificateError::Expired
                    | CertificateError::ExpiredContext { .. }
                    | CertificateError::NotValidYet
                    | CertificateError::NotValidYetContext { .. }
            )
        );
        let Some((first, last)) = certificate::leaf_validity(end_entity).ok().filter(|_| is_of_time) else {
            return Err(error);
        };
        let ours = SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs());
        if ours < first {
            return verify(unix_time(first));
        }
        // Of who is somebody else nothing is told.
        if verify(unix_time(last)).is_ok() {
            *self.skew.lock().unwrap_or_else(PoisonError::into_inner) = Some(Skew::between(ours, last));
        }
        Err(error)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

fn unix_time(at: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    use super::*;
    use crate::clock::Offset;

    const NAME: &str = "edge.branch.gateway.pinhole.dev";
    const DAY: Duration = Duration::from_hours(24);

    struct World {
        ca: String,
        issuer: Issuer<'static, KeyPair>,
        made: SystemTime,
    }

    impl World {
        fn new() -> Self {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            let ca = params.self_signed(&key).unwrap().pem();
            Self { ca, issuer: Issuer::new(params, key), made: SystemTime::UNIX_EPOCH + DAY * 20_000 }
        }

        /// A certificate of seven days.
        fn server(&self, name: &str) -> CertificateDer<'static> {
            let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.not_before = self.made.into();
            params.not_after = (self.made + DAY * 7).into();
            params.signed_by(&KeyPair::generate().unwrap(), &self.issuer).unwrap().der().clone()
        }

        /// Whether it is taken by a clock that says this, and by how much the clock is said to be ahead if not.
        fn judged(&self, shown: &CertificateDer<'_>, clock: SystemTime) -> (bool, Option<Skew>) {
            let judge = Judge::new(&self.ca, Arc::new(rustls::crypto::ring::default_provider())).unwrap();
            let name = ServerName::try_from(NAME).unwrap();
            let verified = judge.verify_server_cert(shown, &[], &name, &[], unix_time(clock));
            (verified.is_ok(), judge.skew())
        }
    }

    #[test]
    fn a_table_of_clocks_against_a_certificate_of_seven_days() {
        let world = World::new();
        let (server, made) = (world.server(NAME), world.made);
        for (clock, verdict) in [
            (made + DAY, (true, None)),
            (made - Duration::from_mins(30), (true, None)),
            (made - 2 * DAY, (true, None)),
            // Without a clock chip and a battery.
            (SystemTime::UNIX_EPOCH, (true, None)),
            (made + 7 * DAY + Duration::from_hours(1), (false, Some(Duration::from_hours(1)))),
            (made + 400 * DAY, (false, Some(393 * DAY))),
        ] {
            let verdict = (verdict.0, verdict.1.map(|ahead| Skew(Offset::Ahead(ahead))));
            assert_eq!(world.judged(&server, clock), verdict);
        }
    }

    #[test]
    fn no_clock_makes_a_stranger_a_gateway() {
        let (world, other) = (World::new(), World::new());
        for clock in [-2_i32, 1, 400]
            .map(|days| if days < 0 { world.made - DAY * 2 } else { world.made + DAY * days.unsigned_abs() })
        {
            assert_eq!(world.judged(&other.server(NAME), clock), (false, None), "another authority");
            assert_eq!(world.judged(&world.server("other.example"), clock), (false, None), "another name");
            assert_eq!(world.judged(&CertificateDer::from(vec![0x30, 0]), clock), (false, None));
        }
    }
}
