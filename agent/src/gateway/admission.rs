//! Lets enrolments and renewals through to the operator, at their [`Paces`]; those who have to wait do so in their order.

use std::{
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use pinhole_proto::{category_of, v1};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};
use tonic::{Code, Status};

use super::{
    paces::{Applicant, Kind, Outcome, Pace, Paces},
    session::refuse,
};

/// Enrolments by token under way at once; each costs the operator a few writes.
const JOINS: usize = 32;
/// The same by ServiceAccount: each that is not known costs the API server a review.
const SERVICE_ACCOUNTS: usize = 16;
/// How long an enrolment waits for its turn.
const TURN_TIMEOUT: Duration = Duration::from_millis(1500);
/// What the operator says of a credential that is not good.
const BAD: [&str; 7] = [
    "TokenInvalid",
    "TokenExpired",
    "TokenRevoked",
    "TokenUsedUp",
    "CredentialInvalid",
    "CredentialMissing",
    "RequestInvalid",
];

/// Who is let through.
#[derive(Debug)]
pub(super) struct Admission {
    paces: Mutex<Paces>,
    joins: Semaphore,
    service_accounts: Semaphore,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            paces: Mutex::default(),
            joins: Semaphore::new(JOINS),
            service_accounts: Semaphore::new(SERVICE_ACCOUNTS),
        }
    }
}

/// The turn of an enrolment. Ends when it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    admission: &'a Admission,
    applicant: Applicant,
    pace: Pace,
    outcome: Outcome,
    permit: Option<SemaphorePermit<'a>>,
}

impl Admission {
    /// Waits for this one's turn.
    pub(super) async fn enrols(
        &self,
        source: IpAddr,
        request: &v1::EnrolRequest,
    ) -> Result<Turn<'_>, Status> {
        let applicant = Applicant::new(source, request);
        let kind = applicant.kind;
        let pace = self.with(|paces| paces.begin(Instant::now(), &applicant)).ok_or_else(|| {
            let message =
                "too many enrolments from this network failed or are under way; try again in a moment";
            refuse(Code::ResourceExhausted, "RateLimited", message)
        })?;
        let mut turn = Turn { admission: self, applicant, pace, outcome: Outcome::Unknown, permit: None };
        let turns = match kind {
            Kind::Join | Kind::Keys => &self.joins,
            Kind::ServiceAccount => &self.service_accounts,
        };
        turn.permit = timeout(TURN_TIMEOUT, turns.acquire()).await.ok().and_then(Result::ok);
        if turn.permit.is_none() {
            let message = "too many clients are enrolling now, try again in a moment";
            return Err(refuse(Code::ResourceExhausted, "EnrolmentBusy", message));
        }
        Ok(turn)
    }

    /// Whether the client with this UID may renew its certificate now.
    pub(super) fn renews(&self, uid: &str) -> Result<(), Status> {
        let message = "this client renewed its certificate too often; try again in a minute";
        let allowed = self.with(|paces| paces.renew(Instant::now(), uid));
        if allowed { Ok(()) } else { Err(refuse(Code::ResourceExhausted, "RateLimited", message)) }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Paces) -> T) -> T {
        act(&mut self.paces.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Turn<'_> {
    /// What the operator said.
    pub(super) fn answered<T>(&mut self, answer: Result<T, Status>) -> Result<T, Status> {
        self.outcome = match &answer {
            Ok(_) => Outcome::Good,
            Err(status) if category_of(status).is_some_and(|category| BAD.contains(&category)) => {
                Outcome::Bad
            }
            Err(_) => Outcome::Unknown,
        };
        answer
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.admission.with(|paces| paces.ended(&self.applicant, self.pace, self.outcome));
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn source(n: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, n).into()
    }

    fn request(secret: &str) -> v1::EnrolRequest {
        let join = v1::JoinCredential { token: "first".into(), secret: secret.into() };
        v1::EnrolRequest {
            credential: Some(v1::enrol_request::Credential::Join(join)),
            ..v1::EnrolRequest::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_has_its_turn_when_another_ends_and_is_told_when_none_does() {
        let admission = Admission::default();
        let mut turns = Vec::new();
        for n in 0..JOINS {
            let turn = admission.enrols(source(u8::try_from(n / 16).unwrap()), &request("slow")).await;
            turns.push(turn.unwrap());
        }
        let busy = admission.enrols(source(9), &request("right")).await.unwrap_err();
        assert_eq!(category_of(&busy), Some("EnrolmentBusy"));
        let request = request("right");
        let later = admission.enrols(source(9), &request);
        let ends = async {
            tokio::task::yield_now().await;
            turns.pop();
        };
        let (turn, ()) = tokio::join!(later, ends);
        turn.unwrap();
    }

    #[tokio::test]
    async fn a_credential_that_the_operator_refuses_costs_and_an_operator_that_is_away_is_no_refusal() {
        let admission = Admission::default();
        let mut refused = 0;
        for n in 0..200 {
            match admission.enrols(source(1), &request(&n.to_string())).await {
                Ok(mut turn) => {
                    let answer = refuse(Code::Unauthenticated, "TokenInvalid", "no");
                    turn.answered::<()>(Err(answer)).unwrap_err();
                    assert_eq!(turn.outcome, Outcome::Bad);
                }
                Err(status) => {
                    assert_eq!(category_of(&status), Some("RateLimited"));
                    refused += 1;
                }
            }
        }
        assert!(refused >= 60, "{refused}");
        let mut turn = admission.enrols(source(2), &request("right")).await.unwrap();
        let away = refuse(Code::Unavailable, "OperatorUnreachable", "away");
        turn.answered::<()>(Err(away)).unwrap_err();
        assert_eq!(turn.outcome, Outcome::Unknown);
    }
}
