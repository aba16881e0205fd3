//! Answers of an API server, for the tests of what is made of them: the client that reads them is the real one.

use std::sync::{Arc, Mutex};

use http::{Request, Response};
use kube::{Client, client::Body};
use serde_json::{Value, json};

/// A call that was made.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) body: Value,
}

impl Asked {
    /// Method and last part of the path.
    pub(crate) fn what(&self) -> String {
        format!("{} {}", self.method, self.path.rsplit('/').next().unwrap_or_default())
    }
}

/// The calls that were made, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calls(Arc<Mutex<Vec<Asked>>>);

impl Calls {
    /// Those since the last time.
    pub(crate) fn take(&self) -> Vec<Asked> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    /// Method and last part of the path of each since the last time.
    pub(crate) fn what(&self) -> Vec<String> {
        self.take().iter().map(Asked::what).collect()
    }
}

/// A client whose calls get these answers: status code and body.
pub(crate) fn api(mut answer: impl FnMut(&Asked) -> (u16, Value) + Send + 'static) -> (Client, Calls) {
    let calls = Calls::default();
    let written = calls.clone();
    let answer = Arc::new(Mutex::new(move |asked: &Asked| answer(asked)));
    let service = tower::service_fn(move |request: Request<Body>| {
        let (written, answer) = (written.clone(), Arc::clone(&answer));
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect_bytes().await?;
            let asked = Asked {
                method: head.method.to_string(),
                path: head.uri.path().to_owned(),
                query: head.uri.query().unwrap_or_default().to_owned(),
                body: serde_json::from_slice(&body).unwrap_or_default(),
            };
            written.0.lock().unwrap().push(asked.clone());
            let (code, body) = (answer.lock().unwrap())(&asked);
            let response =
                Response::builder().status(code).body(Body::from(serde_json::to_vec(&body).unwrap()));
            Ok::<_, kube::Error>(response.unwrap())
        }
    });
    (Client::new(service, "vpn"), calls)
}

/// An API server that refuses with this code.
pub(crate) fn refused(code: u16, message: &str) -> (u16, Value) {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        _ => "",
    };
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "code": code,
    });
    (code, body)
}

#[tokio::test]
async fn calls_are_written_down_as_they_were_made() {
    let (client, calls) = api(|_| refused(404, "no such pod"));
    let pods: kube::Api<k8s_openapi::api::core::v1::Pod> = kube::Api::namespaced(client, "vpn");
    assert_eq!(pods.get_opt("edge-0").await.unwrap(), None);
    let asked = calls.take();
    assert_eq!(
        asked.iter().map(|a| a.path.as_str()).collect::<Vec<_>>(),
        ["/api/v1/namespaces/vpn/pods/edge-0"]
    );
    assert_eq!(calls.what(), Vec::<String>::new());
}
