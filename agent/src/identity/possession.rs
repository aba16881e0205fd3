//! Proof that whoever enrols holds the private half of its WireGuard key. Pure.
//!
//! A WireGuard key cannot sign, it can only agree (X25519). So the gateway gives out a challenge, a nonce and the public half of a
//! key of its own, and the client answers with a MAC whose key only these two can compute: HKDF-SHA256 of the two keys' shared
//! secret, with the nonce as salt. The MAC is over nonce, both public keys, the pool and the certificate signing request, so that
//! an answer is good for this one session key, of this one pool, at this one gateway. The message `KeyProof` of the protocol has it
//! byte for byte.
//!
//! - Who only knows a public key, as every gateway and every peer does, cannot compute the shared secret.
//! - Who relays somebody else's challenge to a client gets an answer over the client's own signing request: a certificate for a
//!   key that the relay does not have.
//! - What comes out of the client's private key is a MAC under a derived key. It says nothing of WireGuard's own shared
//!   secrets, whichever public key the other end shows.
//! - A point of low order, with which the secret is known to everybody, is refused by both ends.
//!
//! The challenge's key is made anew by each process, for nothing else: the gateway's WireGuard key takes part in no second
//! protocol. The nonce is the time and a seal over it (HMAC under a secret of the process), so that a flood of challenges costs
//! no memory. It is good for [`CHALLENGE_LIFE`] and may be used again within it: an answer is bound to the signing request,
//! so whoever repeats it gets a certificate for the same session key again. A restarted gateway, or another replica, knows no
//! challenge but its own, says `ChallengeExpired`, and the client asks for another.

use std::time::{Duration, Instant};

use pinhole_proto::v1;
use ring::{hkdf, hmac};

use crate::{
    entropy,
    tunnel::{PrivateKey, PublicKey, TunnelError},
};

/// For how long a challenge can be answered.
pub const CHALLENGE_LIFE: Duration = Duration::from_mins(1);
/// Bytes of the longest nonce that a client repeats.
const LONGEST_NONCE: usize = 64;
/// Bytes of the time in a nonce, milliseconds.
const TIME: usize = 8;
const INFO: &[u8] = b"pinhole enrolment v1";

/// Why nobody is enrolled under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PossessionError {
    /// There is no proof: an agent that is older than this gateway.
    #[error("the agent does not prove that it holds its WireGuard key: update it")]
    Missing,
    /// The challenge is too old, or of another process.
    #[error("the challenge was not answered in time: ask for another")]
    Expired,
    /// The key cannot be anybody's, or the answer was not made with its private half.
    #[error("whoever asks does not hold the private half of the WireGuard key")]
    Refuted,
}

impl PossessionError {
    /// A stable, low-cardinality name.
    pub fn category(self) -> &'static str {
        match self {
            Self::Missing => "AgentOutdated",
            Self::Expired => "ChallengeExpired",
            Self::Refuted => "KeyNotProven",
        }
    }
}

/// Gives challenges out and checks their answers.
pub struct Challenger {
    key: PrivateKey,
    public_key: PublicKey,
    seal: hmac::Key,
    born: Instant,
}

impl Challenger {
    /// One that knows no challenge of any other.
    ///
    /// # Errors
    /// Where the system has no random bytes.
    pub fn generate(now: Instant) -> Result<Self, TunnelError> {
        let secret = entropy::secret::<32>().ok_or(TunnelError::NoRandomness)?;
        let key = PrivateKey::generate()?;
        let seal = hmac::Key::new(hmac::HMAC_SHA256, secret.as_ref());
        Ok(Self { public_key: key.public(), key, seal, born: now })
    }

    /// A challenge. Nothing of it is kept.
    pub fn challenge(&self, now: Instant) -> v1::EnrolmentChallenge {
        let age = now.saturating_duration_since(self.born).as_millis();
        let made = u64::try_from(age).unwrap_or(u64::MAX).to_be_bytes();
        let seal = hmac::sign(&self.seal, &made);
        let nonce = [made.as_slice(), seal.as_ref()].concat();
        v1::EnrolmentChallenge { nonce, public_key: self.public_key.as_bytes().to_vec() }
    }

    /// Whether `request` was made by the holder of its key.
    ///
    /// # Errors
    /// See [`PossessionError`].
    pub fn check(&self, now: Instant, request: &v1::EnrolRequest) -> Result<(), PossessionError> {
        let proof = request.proof.as_ref().ok_or(PossessionError::Missing)?;
        // First what costs least: no key is agreed on for a nonce that is not ours.
        self.check_nonce(now, &proof.nonce)?;
        let claimed = <[u8; 32]>::try_from(request.public_key.as_slice());
        let claimed = claimed.map_err(|_| PossessionError::Refuted).map(PublicKey::from_bytes)?;
        let key = mac_key(&self.key, claimed, &proof.nonce)?;
        let words = words(&proof.nonce, &self.public_key, &claimed, request);
        hmac::verify(&key, &words, &proof.mac).map_err(|_| PossessionError::Refuted)
    }

    fn check_nonce(&self, now: Instant, nonce: &[u8]) -> Result<(), PossessionError> {
        let (made, seal) = nonce.split_first_chunk::<TIME>().ok_or(PossessionError::Expired)?;
        hmac::verify(&self.seal, made, seal).map_err(|_| PossessionError::Expired)?;
        let made = Duration::from_millis(u64::from_be_bytes(*made));
        let age = now.saturating_duration_since(self.born).saturating_sub(made);
        if age < CHALLENGE_LIFE { Ok(()) } else { Err(PossessionError::Expired) }
    }
}

/// Answers a challenge for `request`, of which the proof alone is not set yet, with its key's private half.
///
/// # Errors
/// `Refuted` where the challenge is none.
pub fn prove(
    key: &PrivateKey,
    challenge: &v1::EnrolmentChallenge,
    request: &v1::EnrolRequest,
) -> Result<v1::KeyProof, PossessionError> {
    let shown = <[u8; 32]>::try_from(challenge.public_key.as_slice());
    let shown = shown.map_err(|_| PossessionError::Refuted).map(PublicKey::from_bytes)?;
    let nonce = &challenge.nonce;
    if nonce.is_empty() || nonce.len() > LONGEST_NONCE {
        return Err(PossessionError::Refuted);
    }
    let mac = hmac::sign(&mac_key(key, shown, nonce)?, &words(nonce, &shown, &key.public(), request));
    Ok(v1::KeyProof { nonce: nonce.clone(), mac: mac.as_ref().to_vec() })
}

fn mac_key(own: &PrivateKey, other: PublicKey, nonce: &[u8]) -> Result<hmac::Key, PossessionError> {
    let shared = own.secret().diffie_hellman(&other.to_x25519());
    if !shared.was_contributory() {
        return Err(PossessionError::Refuted);
    }
    let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, nonce).extract(shared.as_bytes());
    let expanded = extracted.expand(&[INFO], hmac::HMAC_SHA256);
    expanded.map(hmac::Key::from).map_err(|_| PossessionError::Refuted)
}

/// What is proven, without any two ways to read it.
fn words(nonce: &[u8], gateway: &PublicKey, client: &PublicKey, request: &v1::EnrolRequest) -> Vec<u8> {
    let parts = [
        nonce,
        gateway.as_bytes(),
        client.as_bytes(),
        request.pool_namespace.as_bytes(),
        request.pool.as_bytes(),
        &request.csr,
    ];
    let mut words = Vec::new();
    for part in parts {
        words.extend(u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        words.extend(part);
    }
    words
}

#[cfg(test)]
mod tests {
    use pinhole_proto::hostile::Hostile;
    use proptest::prelude::*;

    use super::*;

    /// Points of which every multiple by a private key is the same for everybody, as they are written in 32 bytes: of order 1, 2,
    /// 4 and 8 on the curve and on its twist, and the same beyond the field's prime (RFC 7748, section 6.1).
    const LOW_ORDER: [&str; 7] = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];

    struct World {
        challenger: Challenger,
        client: PrivateKey,
        now: Instant,
    }

    impl World {
        fn new() -> Self {
            let now = Instant::now();
            let challenger = Challenger::generate(now).unwrap();
            Self { challenger, client: PrivateKey::generate().unwrap(), now }
        }

        fn request(&self) -> v1::EnrolRequest {
            v1::EnrolRequest {
                pool_namespace: "vpn".into(),
                pool: "staff".into(),
                public_key: self.client.public().as_bytes().to_vec(),
                csr: b"a signing request".to_vec(),
                ..v1::EnrolRequest::default()
            }
        }

        /// What an honest client would send.
        fn proven(&self) -> v1::EnrolRequest {
            self.proven_by(&self.client)
        }

        fn proven_by(&self, key: &PrivateKey) -> v1::EnrolRequest {
            let request = self.request();
            let proof = prove(key, &self.challenger.challenge(self.now), &request).unwrap();
            v1::EnrolRequest { proof: Some(proof), ..request }
        }

        fn verdict(&self, request: &v1::EnrolRequest) -> Option<&'static str> {
            self.challenger.check(self.now, request).err().map(PossessionError::category)
        }
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len() / 2).map(|n| u8::from_str_radix(&text[n * 2..n * 2 + 2], 16).unwrap()).collect()
    }

    #[test]
    fn the_holder_of_a_key_is_believed() {
        let world = World::new();
        assert_eq!(world.verdict(&world.proven()), None);
    }

    #[test]
    fn who_knows_only_the_public_key_is_not() {
        let world = World::new();
        let thief = PrivateKey::generate().unwrap();
        // The transcript is the victim's to the last byte; only the secret is not.
        let request = world.request();
        let challenge = world.challenger.challenge(world.now);
        let shown = PublicKey::from_bytes(challenge.public_key.clone().try_into().unwrap());
        let key = mac_key(&thief, shown, &challenge.nonce).unwrap();
        let mac = hmac::sign(&key, &words(&challenge.nonce, &shown, &world.client.public(), &request));
        let proof = v1::KeyProof { nonce: challenge.nonce, mac: mac.as_ref().to_vec() };
        assert_eq!(world.verdict(&v1::EnrolRequest { proof: Some(proof), ..request }), Some("KeyNotProven"));
        assert_eq!(world.verdict(&world.proven_by(&thief)), Some("KeyNotProven"));
    }

    #[test]
    fn an_answer_is_good_for_the_session_key_and_the_pool_that_it_was_made_for() {
        let world = World::new();
        let other = |change: fn(&mut v1::EnrolRequest)| {
            let mut request = world.proven();
            change(&mut request);
            world.verdict(&request)
        };
        assert_eq!(other(|r| r.csr = b"a thief's".to_vec()), Some("KeyNotProven"));
        assert_eq!(other(|r| r.pool = "servers".into()), Some("KeyNotProven"));
        assert_eq!(other(|r| r.pool_namespace = "other".into()), Some("KeyNotProven"));
        assert_eq!(other(|r| r.public_key[0] ^= 1), Some("KeyNotProven"));
        // The same point for X25519, but another peer for WireGuard.
        assert_eq!(other(|r| r.public_key[31] ^= 0x80), Some("KeyNotProven"));
        // What one field ends with, another cannot begin with.
        assert_eq!(
            other(|r| {
                r.pool_namespace = "vpns".into();
                r.pool = "taff".into();
            }),
            Some("KeyNotProven")
        );
        assert_eq!(other(|r| r.proof.as_mut().unwrap().mac.truncate(31)), Some("KeyNotProven"));
        assert_eq!(other(|r| r.proof.as_mut().unwrap().mac.clear()), Some("KeyNotProven"));
    }

    #[test]
    fn an_agent_that_knows_of_no_proof_is_told_to_be_updated() {
        let world = World::new();
        assert_eq!(world.verdict(&world.request()), Some("AgentOutdated"));
        assert!(PossessionError::Missing.to_string().contains("update"));
    }

    #[test]
    fn a_challenge_lives_for_a_minute() {
        let mut world = World::new();
        let request = world.proven();
        world.now += CHALLENGE_LIFE.saturating_sub(Duration::from_millis(1));
        assert_eq!(world.verdict(&request), None);
        world.now += Duration::from_millis(1);
        assert_eq!(world.verdict(&request), Some("ChallengeExpired"));
        assert_eq!(world.verdict(&world.proven()), None);
    }

    #[test]
    fn a_challenge_of_another_process_or_of_ones_own_making_is_none() {
        let (world, other) = (World::new(), World::new());
        assert_eq!(world.verdict(&v1::EnrolRequest { ..other.proven() }), Some("ChallengeExpired"));
        for change in [
            // Of tomorrow, made while the key was at hand.
            (|nonce: &mut Vec<u8>| nonce[3] ^= 1) as fn(&mut Vec<u8>),
            |nonce| nonce[TIME] ^= 1,
            |nonce| nonce.truncate(TIME),
            Vec::clear,
            |nonce| nonce.push(0),
        ] {
            let mut challenge = world.challenger.challenge(world.now);
            change(&mut challenge.nonce);
            let mut request = world.request();
            request.proof = prove(&world.client, &challenge, &request)
                .ok()
                .or_else(|| Some(v1::KeyProof { nonce: challenge.nonce.clone(), mac: vec![0; 32] }));
            assert_eq!(world.verdict(&request), Some("ChallengeExpired"));
        }
    }

    #[test]
    fn a_key_whose_secrets_everybody_knows_proves_nothing_and_asks_for_nothing() {
        let world = World::new();
        for point in LOW_ORDER {
            for high in [0, 0x80] {
                let mut point = hex(point);
                point[31] |= high;
                // The shared secret is 0, whatever the private key: this is the answer that would be right.
                let challenge = world.challenger.challenge(world.now);
                let shown = PublicKey::from_bytes(challenge.public_key.clone().try_into().unwrap());
                let low = PublicKey::from_bytes(point.clone().try_into().unwrap());
                let request = v1::EnrolRequest { public_key: point.clone(), ..world.request() };
                let key = hkdf::Salt::new(hkdf::HKDF_SHA256, &challenge.nonce).extract(&[0; 32]);
                let key = hmac::Key::from(key.expand(&[INFO], hmac::HMAC_SHA256).unwrap());
                let mac =
                    hmac::sign(&key, &words(&challenge.nonce, &shown, &low, &request)).as_ref().to_vec();
                let proof = Some(v1::KeyProof { nonce: challenge.nonce.clone(), mac });
                assert_eq!(world.verdict(&v1::EnrolRequest { proof, ..request }), Some("KeyNotProven"));
                let asked = v1::EnrolmentChallenge { public_key: point, ..challenge };
                assert_eq!(prove(&world.client, &asked, &world.request()), Err(PossessionError::Refuted));
            }
        }
    }

    #[test]
    fn a_challenge_that_is_none_is_not_answered() {
        let world = World::new();
        let good = world.challenger.challenge(world.now);
        for bad in [
            v1::EnrolmentChallenge::default(),
            v1::EnrolmentChallenge { nonce: vec![1; LONGEST_NONCE + 1], ..good.clone() },
            v1::EnrolmentChallenge { nonce: Vec::new(), ..good.clone() },
            v1::EnrolmentChallenge { public_key: vec![9; 31], ..good },
        ] {
            assert_eq!(prove(&world.client, &bad, &world.request()), Err(PossessionError::Refuted));
        }
    }

    /// Another implementation in Python (RFC 7748, RFC 5869, RFC 2104 by its standard library) yields the same.
    #[test]
    fn the_bytes_are_those_that_the_protocol_describes() {
        let client = PrivateKey::from_bytes([0x11; 32]);
        let gateway = PrivateKey::from_bytes([0x22; 32]);
        let challenge = v1::EnrolmentChallenge {
            nonce: (0..40).collect(),
            public_key: gateway.public().as_bytes().to_vec(),
        };
        let request = v1::EnrolRequest {
            pool_namespace: "vpn".into(),
            pool: "staff".into(),
            public_key: client.public().as_bytes().to_vec(),
            csr: vec![0x33; 5],
            ..v1::EnrolRequest::default()
        };
        let proof = prove(&client, &challenge, &request).unwrap();
        assert_eq!(proof.mac, hex("fedfc43125b3170818473704758f81f2b1ce00645e1602aeb48d2becca4db187"));
    }

    proptest! {
        #[test]
        fn no_single_changed_byte_is_overlooked(at: usize, bit in 0u8..8, part in 0usize..4) {
            let world = World::new();
            let mut request = world.proven();
            let proof = request.proof.get_or_insert_default();
            let bytes = [&mut request.public_key, &mut request.csr, &mut proof.nonce, &mut proof.mac];
            let changed = bytes.into_iter().nth(part).unwrap();
            let at = at % changed.len();
            changed[at] ^= 1 << bit;
            prop_assert!(world.verdict(&request).is_some());
        }

        #[test]
        fn nothing_hostile_is_believed_or_ends_a_gateway(seed: u64) {
            let world = World::new();
            let mut hostile = Hostile::new(seed);
            for _ in 0..32 {
                let mut request = hostile.readable::<v1::EnrolRequest>("EnrolRequest");
                prop_assert!(world.verdict(&request).is_some());
                // With a nonce of ours the rest is looked at too.
                request.proof.get_or_insert_default().nonce = world.challenger.challenge(world.now).nonce;
                prop_assert_eq!(world.verdict(&request), Some("KeyNotProven"));
                let challenge = hostile.readable::<v1::EnrolmentChallenge>("EnrolmentChallenge");
                let _ = prove(&world.client, &challenge, &request);
            }
        }
    }
}
