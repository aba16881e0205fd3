//! What can end the demo before its end.

use super::script::Stuck;

/// Why the demo did not come to its end, in one line each.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The lab, the cluster or a build.
    #[error("{}", one_line(.0))]
    Lab(Box<crate::Error>),
    /// The clients did not do what they should.
    #[error("{0}")]
    Stuck(String),
    /// A `pinhole up` ended.
    #[error("`pinhole up` on {client} ended by itself ({status}): {said}")]
    ClientEnded {
        /// The client.
        client: &'static str,
        /// How it ended.
        status: String,
        /// The last line that it wrote.
        said: String,
    },
    /// Somebody else has the demo's namespace.
    #[error(
        "the namespace {0} exists already: another demo runs, or one was killed; `kubectl delete namespace {0}` makes way"
    )]
    Occupied(&'static str),
    /// A signal came.
    #[error("interrupted, and taken down")]
    Interrupted,
    /// A second signal came, while taking down.
    #[error("interrupted while taking down: {0}")]
    LeftInCluster(String),
    /// The lab did not go completely.
    #[error("the lab left something behind; `pinhole-lab down` removes it: {0}")]
    LeftBehind(String),
    /// The results could not be written.
    #[error("writing the results: {0}")]
    Results(String),
}

impl Error {
    /// Stable, low-cardinality name of the kind of failure.
    pub const fn category(&self) -> &'static str {
        match self {
            Self::Lab(error) => error.category(),
            Self::Stuck(_) => "Stuck",
            Self::ClientEnded { .. } => "ClientEnded",
            Self::Occupied(_) => "Occupied",
            Self::Interrupted => "Interrupted",
            Self::LeftInCluster(_) => "LeftInCluster",
            Self::LeftBehind(_) => "LeftBehind",
            Self::Results(_) => "Results",
        }
    }
}

// Without it as a source: the line holds all of it already.
impl From<crate::Error> for Error {
    fn from(error: crate::Error) -> Self {
        Self::Lab(Box::new(error))
    }
}

impl From<Stuck> for Error {
    fn from(stuck: Stuck) -> Self {
        Self::Stuck(stuck.to_string())
    }
}

/// What failed and how it ended: the first line and, of the output that may follow, the last.
fn one_line(error: &crate::Error) -> String {
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    lines.next_back().map_or_else(|| first.to_owned(), |last| format!("{first} … {last}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_with_pages_of_output_is_one_line() {
        let error = Error::from(crate::Error::Invalid("helm failed: a\n  b\n\n  no such chart\n".to_owned()));
        assert_eq!(error.to_string(), "helm failed: a … no such chart");
        assert_eq!(Error::from(crate::Error::NotUp).to_string().lines().count(), 1);
    }
}
