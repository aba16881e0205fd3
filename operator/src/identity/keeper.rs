//! Keeps the authorities and the operator's own certificate fresh.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::PublicKeyData;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Authorities, AuthorityStore, IdentityError, Issued, ServerCertificate, operator_names};

/// How often the Secret is looked at again.
const LOOK_EVERY: Duration = Duration::from_mins(10);

/// The operator's certificate authority as it stands, and its own certificate.
pub struct Identity {
    authorities: watch::Sender<Arc<Authorities>>,
    server: Arc<ServerCertificate>,
    names: Vec<String>,
}

impl Identity {
    /// From authorities that were loaded. `namespace` and `service` are those of the operator's Service.
    pub fn new(authorities: Authorities, namespace: &str, service: &str) -> Result<Arc<Self>, IdentityError> {
        let identity = Self {
            authorities: watch::Sender::new(Arc::new(authorities)),
            server: Arc::default(),
            names: operator_names(namespace, service),
        };
        identity.server.renew(&identity.authorities(), &identity.names, SystemTime::now())?;
        Ok(Arc::new(identity))
    }

    /// The authorities at present.
    pub fn authorities(&self) -> Arc<Authorities> {
        Arc::clone(&self.authorities.borrow())
    }

    /// The authorities, now and whenever they change: what carries the trust bundle is to be written anew then.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Authorities>> {
        self.authorities.subscribe()
    }

    /// The operator's own certificate.
    pub fn server(&self) -> &Arc<ServerCertificate> {
        &self.server
    }

    /// See [`Authorities::issue_server`].
    pub fn issue_server(&self, key: &impl PublicKeyData, names: &[String]) -> Result<Issued, IdentityError> {
        self.authorities().issue_server(key, names, SystemTime::now())
    }

    /// See [`Authorities::issue_client`].
    pub fn issue_client(
        &self,
        key: &impl PublicKeyData,
        name: &str,
        uri: &str,
    ) -> Result<Issued, IdentityError> {
        self.authorities().issue_client(key, name, uri, SystemTime::now())
    }

    /// Keeps the authorities and the own certificate fresh until `stop`: as the leader it rotates them, else it
    /// reads what the leader made. Failures are logged and tried again.
    pub async fn keep(
        &self,
        store: AuthorityStore,
        mut leading: watch::Receiver<bool>,
        stop: CancellationToken,
    ) {
        let mut alive = true;
        loop {
            let leader = *leading.borrow_and_update();
            if let Err(error) = self.refresh(&store, leader).await {
                tracing::warn!(category = error.category(), %error, "certificate authority not refreshed");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
                changed = leading.changed(), if alive => alive = changed.is_ok(),
            }
        }
    }

    async fn refresh(&self, store: &AuthorityStore, leader: bool) -> Result<(), IdentityError> {
        let now = SystemTime::now();
        let authorities = if leader { store.rotate(now).await? } else { store.load_or_create(now).await? };
        let changed = self.authorities.send_if_modified(|current| {
            let changed = current.bundle_pem() != authorities.bundle_pem();
            if changed {
                *current = Arc::new(authorities);
            }
            changed
        });
        if changed {
            tracing::info!("the certificate authorities changed");
        }
        if changed || self.server.is_due(now) {
            self.server.renew(&self.authorities(), &self.names, now)?;
        }
        Ok(())
    }
}
