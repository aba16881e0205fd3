//! The forms that names and other words of a `spec` may have. What they end in (configurations, command lines,
//! paths of the API, terminals) cannot be talked into anything by a text of these forms.

use schemars::{Schema, SchemaGenerator, json_schema};

/// A DNS label (RFC 1123); its length is bounded beside it.
pub(crate) const LABEL: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";

/// A DNS label that starts with a letter (RFC 1035), as gateways and pools are named.
pub(crate) const LETTERED_LABEL: &str = "^[a-z]([-a-z0-9]*[a-z0-9])?$";

/// A DNS subdomain (RFC 1123), as pods and priority classes are named.
pub(crate) const SUBDOMAIN: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";

/// A word such as the value of a label.
pub(crate) const WORD: &str = "^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$";

/// A UID, as the API server makes it.
pub(crate) const UID: &str = "^[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?$";

/// A word, with a DNS subdomain and a slash in front or not.
pub(crate) const QUALIFIED: &str =
    "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$";

/// Reference of a container image: a registry, which may be an IPv6 address in brackets, a path, a tag, a digest.
pub(crate) const IMAGE: &str = "^(\\[[0-9a-fA-F:]+\\]|[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?)(:[0-9]{1,5})?\
    (/[a-z0-9]+([._-]+[a-z0-9]+)*)*\
    (:[A-Za-z0-9_][-A-Za-z0-9_.]{0,127})?(@[a-z0-9]+([+._-][a-z0-9]+)*:[0-9a-fA-F]{32,128})?$";

/// CEL: whether `variable` is a domain name: as `DomainName` of pinhole-proto, but for its length.
pub(crate) fn is_domain(variable: &str) -> String {
    const PART: &str = "[A-Za-z0-9_]([-A-Za-z0-9_]{0,61}[A-Za-z0-9_])?";
    format!("({variable}.matches('^{PART}([.]{PART})*[.]?$') && !{variable}.matches('(^|[.])[0-9]+[.]?$'))")
}

/// Schema of labels, or of what they are compared with. Their keys are checked by the API server where it is given
/// them.
pub(crate) fn labels_schema(_: &mut SchemaGenerator) -> Schema {
    let value = format!("^({})?$", WORD.trim_matches(['^', '$']));
    json_schema!({
        "type": "object",
        "maxProperties": 64,
        "additionalProperties": { "type": "string", "maxLength": 63, "pattern": value },
    })
}
