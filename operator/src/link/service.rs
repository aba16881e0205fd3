//! The calls of the link.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use pinhole_proto::v1::{
    DesiredState, EnrolResponse, GatewayMessage, IssueServerCertificateRequest, IssuedCertificate,
    OperatorMessage, RelayEnrolRequest, RelayRenewRequest, gateway_link_server::GatewayLink,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{
    attach::{Speaker, Streams},
    door, status,
};
use crate::{
    enrolment::{Enroller, Records},
    fleet::GatewayKey,
    identity::{Identity, ReplicaIdentity, RequestedKey, bearer_token, gateway_names},
};

/// How long a replica that just started waits for its first snapshot, which names its pools.
const PLAN_TIMEOUT: Duration = Duration::from_secs(5);

/// The service.
pub(super) struct LinkService<R> {
    pub(super) streams: Streams,
    pub(super) identity: Arc<Identity>,
    pub(super) enroller: Arc<Enroller<R>>,
}

impl<R: Records> LinkService<R> {
    /// What the replica should run, once there is something.
    async fn planned(&self, caller: &ReplicaIdentity) -> Result<Arc<DesiredState>, Status> {
        let gateway = GatewayKey::new(&caller.namespace, &caller.gateway);
        let mut desired = self.streams.fleet.desired(&gateway, &caller.replica);
        let planned = timeout(PLAN_TIMEOUT, desired.wait_for(Option::is_some)).await;
        let state = planned.ok().and_then(Result::ok).and_then(|state| state.clone());
        state.ok_or_else(|| {
            let message = format!("nothing is planned yet for VPNGateway {gateway}; try again");
            status::status(Code::Unavailable, "GatewayNotPlanned", message)
        })
    }
}

#[tonic::async_trait]
impl<R: Records> GatewayLink for LinkService<R> {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<OperatorMessage, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<GatewayMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let caller = door::caller(&request)?;
        let token =
            bearer_token(request.metadata()).map_err(|error| status::of_credential(&error))?.to_owned();
        // One place: what waits is always the newest.
        let (outbox, stream) = mpsc::channel(1);
        tokio::spawn(self.streams.clone().serve(Speaker { caller, token }, request.into_inner(), outbox));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn issue_server_certificate(
        &self,
        request: Request<IssueServerCertificateRequest>,
    ) -> Result<Response<IssuedCertificate>, Status> {
        let caller = door::caller(&request)?;
        let key =
            RequestedKey::from_csr(&request.into_inner().csr).map_err(|error| status::of_identity(&error))?;
        let planned = self.planned(&caller).await?;
        let pools = planned.pools.iter().filter_map(|pool| pool.pool.as_ref()).map(|pool| pool.name.as_str());
        let names = gateway_names(&caller.namespace, &caller.gateway, pools);
        let authorities = self.identity.authorities();
        let issued = authorities
            .issue_server(&key, &names, std::time::SystemTime::now())
            .map_err(|error| status::of_identity(&error))?;
        tracing::info!(
            namespace = caller.namespace,
            replica = caller.replica,
            ?names,
            "issued a server certificate"
        );
        Ok(Response::new(IssuedCertificate {
            chain_pem: issued.chain_pem,
            ca_pem: authorities.bundle_pem().to_owned(),
            not_after: Some(issued.not_after.into()),
        }))
    }

    async fn relay_enrol(
        &self,
        request: Request<RelayEnrolRequest>,
    ) -> Result<Response<EnrolResponse>, Status> {
        let caller = door::caller(&request)?;
        let request = request.into_inner();
        let (namespace, replica) = (caller.namespace.as_str(), caller.replica.as_str());
        match self.enroller.enrol(&caller, request).await {
            Ok(response) => {
                let client =
                    response.config.as_ref().and_then(|c| c.client.as_ref()).map(|c| c.name.as_str());
                tracing::info!(namespace, replica, client, "enrolled");
                Ok(Response::new(response))
            }
            Err(error) => {
                tracing::info!(namespace, replica, category = error.category(), %error, "enrolment refused");
                Err(status::of_enrolment(&error))
            }
        }
    }

    async fn relay_renew(
        &self,
        request: Request<RelayRenewRequest>,
    ) -> Result<Response<IssuedCertificate>, Status> {
        let caller = door::caller(&request)?;
        self.enroller.renew(&caller, request.into_inner()).await.map(Response::new).map_err(|error| {
            tracing::info!(replica = caller.replica, category = error.category(), %error, "renewal refused");
            status::of_enrolment(&error)
        })
    }
}
