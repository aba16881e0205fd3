//! Reads objects that this version does not understand in full: a value that is newer than it, an odd field. What is not
//! read stays as it was last known, or is left out where nothing depends on it; an object is never skipped for it.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use serde_path_to_error::Segment;

use crate::{VPNClient, VPNClientPool, VPNGateway};

/// Fields of one object that may be mended before it is given up.
const MENDED: usize = 512;

/// Longest text of an object that a reason quotes, characters.
const QUOTE: usize = 200;

/// A kind that is read leniently.
pub trait Lenient: Resource<DynamicType = ()> + DeserializeOwned + Serialize {
    /// Parts of a spec that can be left out. Without any other part the object would mean something else: it is
    /// [`Unreadable`] where that part is not known from before.
    const OPTIONAL: &'static [&'static str];
    /// Parts that are left out or kept as a whole: half of them would grant more than was meant.
    const WHOLE: &'static [&'static str] = &["spec.enrolment"];

    /// What of the object's spec can be told from its status, for one that was not known before.
    fn recalled(_raw: &Value) -> Value {
        Value::Null
    }
}

impl Lenient for VPNGateway {
    const OPTIONAL: &'static [&'static str] = &["spec.keepalive", "spec.healthMode", "spec.pod"];
}

impl Lenient for VPNClientPool {
    const OPTIONAL: &'static [&'static str] = &[
        "spec.routes",
        "spec.clientToClient",
        "spec.dns",
        "spec.enrolment",
        "spec.maxClients",
        "spec.keepalive",
        "spec.healthMode",
    ];

    /// Its gateway, its addresses and what its clients reach stay. Of a status that an operator before `inForce` wrote nothing
    /// can be told.
    fn recalled(raw: &Value) -> Value {
        let Some(known) = raw.pointer("/status/inForce") else { return Value::Null };
        let mut spec = Map::new();
        spec.insert("gatewayRef".into(), json!({ "name": known.get("gateway") }));
        // None were reserved, or routed, where the status names none.
        for list in ["cidrs", "reserved", "routes"] {
            spec.insert(list.into(), known.get(list).cloned().unwrap_or_else(|| json!([])));
        }
        for part in ["clientToClient", "dns"] {
            spec.extend(known.get(part).map(|value| (part.to_owned(), value.clone())));
        }
        json!({ "spec": spec })
    }
}

impl Lenient for VPNClient {
    const OPTIONAL: &'static [&'static str] = &["spec"];

    /// Its key and addresses stay; who was not allowed to connect is not now; who has an agent is no stock client.
    fn recalled(raw: &Value) -> Value {
        let mut spec = Map::new();
        let mut put = |key: &str, value: Option<&Value>| {
            value.map(|value| spec.insert(key.to_owned(), value.clone()));
        };
        put("publicKey", raw.pointer("/status/publicKey"));
        put("addresses", raw.pointer("/status/addresses"));
        put("enrolment", Some(&json!({ "method": "Token" })));
        if raw.pointer("/status/phase").and_then(Value::as_str) == Some("Suspended") {
            put("suspended", Some(&json!(true)));
            put("expiresAt", Some(&json!("1970-01-01T00:00:00Z")));
        }
        json!({ "spec": spec })
    }
}

/// A part of an object that was not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// Where it is, such as `spec.keepalive.mode`.
    pub path: String,
    /// Why, with what is there.
    pub why: String,
    /// Whether a value from before is in force in its place.
    pub kept: bool,
}

impl Unread {
    /// Whether a user wrote it.
    pub fn is_of_spec(&self) -> bool {
        is_within(&self.path, "spec")
    }

    /// Whether it is this part of the object, or lies in it.
    pub fn is_in(&self, part: &str) -> bool {
        is_within(&self.path, part)
    }
}

/// An object of which too little is understood to go by it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {why}")]
pub struct Unreadable {
    /// Where it is not understood.
    pub path: String,
    /// Why.
    pub why: String,
}

/// An object as far as it was understood.
#[derive(Clone, Debug)]
pub struct Reading<K> {
    /// The object.
    pub object: K,
    /// What of it was not read.
    pub unread: Vec<Unread>,
}

/// An object as it came, which reading never fails.
#[derive(Clone, Debug)]
pub struct Raw<K> {
    metadata: ObjectMeta,
    content: Content<K>,
}

#[derive(Clone, Debug)]
enum Content<K> {
    Whole(Box<K>),
    Odd(Value),
}

impl<K: Lenient> Raw<K> {
    /// Whether some of it is not understood.
    pub fn is_odd(&self) -> bool {
        matches!(self.content, Content::Odd(_))
    }

    /// The text at a path such as `/spec/poolRef/name`, of an object that is odd.
    pub fn text(&self, pointer: &str) -> Option<&str> {
        if let Content::Odd(value) = &self.content { value.pointer(pointer)?.as_str() } else { None }
    }

    /// What can be parsed of a list of texts, of an object that is odd.
    pub fn list<T: std::str::FromStr>(&self, pointer: &str) -> Vec<T> {
        let Content::Odd(value) = &self.content else { return Vec::new() };
        let items = value.pointer(pointer).and_then(Value::as_array);
        items.into_iter().flatten().filter_map(|item| item.as_str()?.parse().ok()).collect()
    }

    /// Reads it. `last` is the same object as it was last understood.
    pub fn read(self, last: Option<&K>) -> Result<Reading<K>, Unreadable> {
        let (mut object, unread) = match self.content {
            Content::Whole(object) => (*object, Vec::new()),
            Content::Odd(value) => mended::<K>(value, last)?,
        };
        *object.meta_mut() = self.metadata;
        Ok(Reading { object, unread })
    }
}

impl<'de, K: Lenient> Deserialize<'de> for Raw<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Metadata {
            #[serde(default)]
            metadata: ObjectMeta,
        }
        let value = Value::deserialize(deserializer)?;
        if let Ok(mut object) = K::deserialize(&value) {
            let metadata = std::mem::take(object.meta_mut());
            return Ok(Self { metadata, content: Content::Whole(Box::new(object)) });
        }
        let Metadata { metadata } = Metadata::deserialize(&value).map_err(serde::de::Error::custom)?;
        Ok(Self { metadata, content: Content::Odd(value) })
    }
}

impl<K: Resource> Resource for Raw<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(dt)
    }

    fn group(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::group(dt)
    }

    fn version(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::version(dt)
    }

    fn plural(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Takes out, or puts the last known value in the place of, one part after the other, until the rest can be read.
fn mended<K: Lenient>(mut value: Value, last: Option<&K>) -> Result<(K, Vec<Unread>), Unreadable> {
    let known = last.and_then(|last| serde_json::to_value(last).ok());
    let recalled = if known.is_none() { K::recalled(&value) } else { Value::Null };
    // An enrolment is never taken back: one that was not there before is a new one.
    let enrolment = K::recalled(&value);
    let (mut unread, mut kept): (Vec<Unread>, Vec<String>) = (Vec::new(), Vec::new());
    for _ in 0..MENDED {
        let (path, why) = match serde_path_to_error::deserialize::<_, K>(&value) {
            Ok(object) => return Ok((object, unread)),
            Err(error) => (parts(error.path()), quoted(&error.inner().to_string())),
        };
        let (path, element) = part::<K>(path);
        let name = path.join(".");
        let unreadable = || Unreadable { path: name.clone(), why: why.clone() };
        let of_status = path.first().is_some_and(|first| first == "status");
        if !of_status && path.len() < 2 {
            let added = add_missing::<K>(&mut value, &recalled);
            if added.is_empty() {
                return Err(unreadable());
            }
            unread.extend(added.into_iter().map(|path| Unread { path, why: why.clone(), kept: true }));
            continue;
        }
        let before = (!of_status && !kept.contains(&name))
            .then(|| {
                let enrolment = get(&enrolment, &path).filter(|_| name == "spec.enrolment");
                known.as_ref().and_then(|known| get(known, &path)).or(get(&recalled, &path)).or(enrolment)
            })
            .flatten();
        if before.is_some() {
            kept.push(name.clone());
        }
        let is_optional =
            of_status || known.is_some() || K::OPTIONAL.iter().any(|part| is_within(&name, part));
        if before.is_none() && !is_optional {
            return Err(unreadable());
        }
        let is_kept = before.is_some();
        if !replace(&mut value, &path, element, before.cloned()) {
            return Err(unreadable());
        }
        // A part that went because something in it did is no news.
        if !unread.iter().any(|known| is_within(&known.path, &name)) {
            unread.push(Unread { path: name, why, kept: is_kept });
        }
    }
    Err(Unreadable { path: "spec".into(), why: "more fields than can be mended are not understood".into() })
}

/// Puts in what `recalled` knows of the spec and the spec cannot do without, such as a field that a newer version calls
/// otherwise. Where.
fn add_missing<K: Lenient>(value: &mut Value, recalled: &Value) -> Vec<String> {
    let (Some(spec), Some(recalled)) = (
        value.get_mut("spec").and_then(Value::as_object_mut),
        recalled.get("spec").and_then(Value::as_object),
    ) else {
        return Vec::new();
    };
    let is_empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
    let is_optional = |name: &str| K::OPTIONAL.iter().any(|part| is_within(&format!("spec.{name}"), part));
    let missing = recalled
        .iter()
        .filter(|(name, value)| !spec.contains_key(*name) && !is_optional(name) && !is_empty(value));
    let missing: Vec<(String, Value)> = missing.map(|(name, value)| (name.clone(), value.clone())).collect();
    let added = missing.iter().map(|(name, _)| format!("spec.{name}")).collect();
    spec.extend(missing);
    added
}

/// Cut off where a list begins, of which single elements cannot be told from one time to another, and where the part is
/// one that is taken as a whole. With the element, if one is at fault.
fn part<K: Lenient>(mut path: Vec<Step>) -> (Vec<String>, Option<usize>) {
    let list = path.iter().position(|step| matches!(step, Step::Element(_)));
    let element = list.and_then(|at| if let Step::Element(n) = path.get(at)? { Some(*n) } else { None });
    path.truncate(list.unwrap_or(path.len()));
    let mut names: Vec<String> = path
        .into_iter()
        .filter_map(|step| if let Step::Field(name) = step { Some(name) } else { None })
        .collect();
    let name = names.join(".");
    match K::WHOLE.iter().find(|whole| is_within(&name, whole)) {
        Some(whole) => {
            names.truncate(whole.split('.').count());
            (names, None)
        }
        None => (names, element),
    }
}

enum Step {
    Field(String),
    Element(usize),
}

fn parts(path: &serde_path_to_error::Path) -> Vec<Step> {
    let steps = path.iter().filter_map(|segment| match segment {
        Segment::Seq { index } => Some(Step::Element(*index)),
        Segment::Map { key } => Some(Step::Field(key.clone())),
        Segment::Enum { .. } | Segment::Unknown => None,
    });
    steps.collect()
}

fn get<'a>(value: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, key| value.get(key))
}

/// Puts `new` there, or takes out the element, or the whole where there is none. False: there is nothing to take out.
fn replace(value: &mut Value, path: &[String], element: Option<usize>, new: Option<Value>) -> bool {
    let Some((name, above)) = path.split_last() else { return false };
    let parent = above.iter().try_fold(value, |value, key| value.get_mut(key)).and_then(Value::as_object_mut);
    let Some(parent) = parent else { return false };
    if let Some(new) = new {
        parent.insert(name.clone(), new);
        return true;
    }
    match (element, parent.get_mut(name).and_then(Value::as_array_mut)) {
        (Some(n), Some(list)) if n < list.len() => {
            list.remove(n);
            true
        }
        _ => parent.remove(name).is_some(),
    }
}

fn is_within(path: &str, part: &str) -> bool {
    path.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn quoted(why: &str) -> String {
    why.chars().filter(|c| !c.is_control()).take(QUOTE).collect()
}
