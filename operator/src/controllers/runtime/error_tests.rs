//! What is made of each answer of the API server.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;

use super::{
    super::api_tests::{api, refused},
    *,
};
use crate::plan::ObjectKind;

async fn answered(code: u16, message: &'static str) -> ControlError {
    let (client, _) = api(move |_| refused(code, message));
    let maps: Api<ConfigMap> = Api::namespaced(client, "vpn");
    call(|| "reading ConfigMap vpn/edge".to_owned(), maps.get("edge")).await.unwrap_err()
}

#[tokio::test]
async fn each_code_has_a_category_and_only_what_somebody_must_mend_lasts() {
    // Code, category, whether it lasts, whether somebody else was faster, whether the object is gone.
    let table = [
        (400, "Invalid", true, false, false),
        (401, "Unauthorized", false, false, false),
        (403, "Forbidden", true, false, false),
        (404, "NotFound", false, false, true),
        (409, "Conflict", false, true, false),
        (410, "Refused", false, false, false),
        (422, "Invalid", true, false, false),
        (429, "TooManyRequests", false, false, false),
        (500, "ServerError", false, false, false),
        (503, "ServerError", false, false, false),
    ];
    for (code, category, lasts, conflict, gone) in table {
        let error = answered(code, "no").await;
        assert_eq!(error.category(), category, "{code}");
        assert_eq!(error.lasting(), lasts.then_some(category), "{code}");
        assert_eq!((error.is_conflict(), error.is_not_found()), (conflict, gone), "{code}");
        assert!(error.to_string().starts_with("reading ConfigMap vpn/edge: "), "{error}");
    }
}

#[tokio::test]
async fn a_refusal_is_told_where_it_says_more_than_that_it_is_one() {
    let quota = "pods \"edge-0\" is forbidden: exceeded quota: few";
    let table = [
        (403, quota, Some(Cause::Quota)),
        // The same words with a code that passes by itself are no refusal yet.
        (500, quota, None),
        (409, quota, None),
        (403, "statefulsets.apps is forbidden: User \"operator\" cannot patch it", None),
        (400, "admission webhook \"a.b\" denied the request: no", Some(Cause::AdmissionDenied)),
        (422, "Service \"edge\" is invalid: provided port is already allocated", Some(Cause::NodePortTaken)),
        (422, "spec.replicas: invalid value", None),
    ];
    for (code, message, cause) in table {
        let refusal = answered(code, message).await.refusal();
        assert_eq!(refusal.map(|refusal| refusal.cause), cause, "{code} {message}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers_holds_up_nobody_for_longer_than_the_timeout() {
    let started = tokio::time::Instant::now();
    let never = std::future::pending::<kube::Result<()>>();
    let error = call(|| "reading Pod vpn/edge-0".to_owned(), never).await.unwrap_err();
    assert_eq!(started.elapsed(), CALL_TIMEOUT);
    assert_eq!((error.category(), error.lasting(), error.is_conflict()), ("Timeout", None, false));
    assert!(error.to_string().contains("reading Pod vpn/edge-0: the API server did not answer within 8 s"));
}

#[tokio::test]
async fn a_server_that_is_not_reached_is_tried_again() {
    let unreached = std::future::ready(Err::<(), _>(kube::Error::Service("connection refused".into())));
    let error = call(|| "reading".to_owned(), unreached).await.unwrap_err();
    assert_eq!((error.category(), error.lasting()), ("Unreachable", None));
    assert!(!error.is_conflict() && !error.is_not_found() && error.refusal().is_none());
}

#[test]
fn an_object_of_somebody_else_lasts_and_is_named_with_what_to_do() {
    let taken = Foreign { kind: ObjectKind::Service, name: "edge".into(), controller: None };
    let error = ControlError::Foreign(vec![taken]);
    assert_eq!((error.category(), error.lasting()), (Foreign::CATEGORY, Some(Foreign::CATEGORY)));
    assert!(error.refusal().is_none() && error.key_error().is_none(), "it is no words of the API server");
    assert!(
        error.to_string().contains("Service edge exists") && error.to_string().contains("delete or rename")
    );
}

#[test]
fn a_key_that_cannot_be_read_lasts_and_a_secret_that_is_on_its_way_out_does_not() {
    let foreign = ControlError::from(KeyError::ForeignSecret("edge-keys".into()));
    assert_eq!(foreign.lasting(), Some(foreign.category()));
    assert!(matches!(foreign.key_error(), Some(KeyError::ForeignSecret(_))));
    let outgoing = ControlError::from(KeyError::OutgoingSecret("edge-keys".into()));
    assert_eq!((outgoing.lasting(), outgoing.key_error().is_none()), (None, true));
}
