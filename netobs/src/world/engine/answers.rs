//! What an engine's answers mean. Of each only the few fields that netobs needs
//! are read; what is odd in one container does not hide the others.

use std::{borrow::Cow, fmt, path::Path};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::world::text::{lossless, lossless_with};

/// The newest version of the API whose answers are known to have what is read
/// here.
const NEWEST: (u32, u32) = (1, 53);
/// More containers than this no machine runs; an engine that tells of more is
/// not believed.
const MOST_CONTAINERS: usize = 20_000;
/// Longest id: Docker's have 64 characters.
const LONGEST_ID: usize = 256;
/// Longest name that is kept whole.
const LONGEST_NAME: usize = 4096;
/// How much of an answer that is none is worth telling.
const EXCERPT: usize = 120;

/// Which engine it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    /// The version of the API to speak: `1.47`.
    pub(super) api: String,
    /// `docker` or `podman`.
    pub(super) runtime: &'static str,
}

/// The containers that run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ids {
    /// Their ids.
    pub(super) ids: Vec<String>,
    /// Entries of the list that are no containers.
    pub(super) odd: usize,
}

/// What is asked of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Inspected {
    /// Its first process; 0 where it does not run.
    pub(super) pid: u32,
    /// Name, without the leading slash; empty where it has none.
    pub(super) name: String,
    /// Image.
    pub(super) image: Option<String>,
    /// The file that leads to its namespace.
    pub(super) sandbox: Option<String>,
}

/// Something happened in the engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    /// `container`, `network`, ...
    pub(super) kind: Option<String>,
    /// `start`, `die`, ...
    pub(super) action: Option<String>,
    /// To whom.
    pub(super) id: Option<String>,
    /// What that is called.
    pub(super) name: Option<String>,
    /// Of which image it is.
    pub(super) image: Option<String>,
}

/// A field of another type than it should have is as good as missing.
fn lenient<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    let raw = <&RawValue>::deserialize(deserializer)?;
    Ok(serde_json::from_str(raw.get()).ok())
}

/// The answer to `/version`.
pub(super) fn version(body: &[u8]) -> Result<Version, String> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(rename = "ApiVersion", default, deserialize_with = "lenient")]
        api: Option<String>,
        #[serde(rename = "Components", default, deserialize_with = "lenient")]
        components: Option<Vec<Component>>,
    }
    #[derive(Deserialize)]
    struct Component {
        #[serde(rename = "Name", default)]
        name: String,
    }
    let answer: Answer = parse(body)?;
    let api = answer.api.unwrap_or_default();
    let (major, minor) = api
        .split_once('.')
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
        .ok_or("the answer names no version of Docker's API: is this a container engine?")?;
    let (major, minor) = NEWEST.min((major, minor));
    let mut components = answer.components.iter().flatten();
    let podman = components.any(|component| component.name.starts_with("Podman"));
    Ok(Version {
        api: format!("{major}.{minor}"),
        runtime: if podman { "podman" } else { "docker" },
    })
}

/// The answer to `/containers/json`.
pub(super) fn ids(body: &[u8]) -> Result<Ids, String> {
    let found: Ids = parse(body)?;
    if found.ids.len() > MOST_CONTAINERS {
        return Err(format!(
            "the engine tells of more than {MOST_CONTAINERS} containers"
        ));
    }
    Ok(found)
}

impl<'de> Deserialize<'de> for Ids {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(IdsVisitor)
    }
}

/// Takes a list one by one: as a whole it would need many times its own memory.
struct IdsVisitor;

impl<'de> Visitor<'de> for IdsVisitor {
    type Value = Ids;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of containers")
    }

    fn visit_unit<E>(self) -> Result<Ids, E> {
        Ok(Ids::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Ids, A::Error> {
        #[derive(Deserialize)]
        struct Summary {
            #[serde(rename = "Id")]
            id: String,
        }
        let mut found = Ids::default();
        while let Some(entry) = list.next_element::<&RawValue>()? {
            // To serde a list is a structure too.
            let object = entry.get().starts_with('{');
            match serde_json::from_str::<Summary>(entry.get()) {
                Ok(summary) if object && is_id(&summary.id) => {
                    // One more than may be is enough to know.
                    if found.ids.len() <= MOST_CONTAINERS {
                        found.ids.push(summary.id);
                    }
                }
                _ => found.odd += 1,
            }
        }
        Ok(found)
    }
}

/// An id becomes a part of a path.
fn is_id(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    (1..=LONGEST_ID).contains(&id.len())
        && id.bytes().all(plain)
        && !id.bytes().all(|byte| byte == b'.')
}

/// The answer to `/containers/ID/json`.
pub(super) fn inspected(body: &[u8]) -> Result<Inspected, String> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(rename = "Name", default, deserialize_with = "lenient")]
        name: Option<String>,
        #[serde(rename = "State", default, deserialize_with = "lenient")]
        state: Option<State>,
        #[serde(rename = "Config", default, deserialize_with = "lenient")]
        config: Option<Config>,
        #[serde(rename = "NetworkSettings", default, deserialize_with = "lenient")]
        network: Option<Network>,
    }
    #[derive(Deserialize)]
    struct State {
        #[serde(rename = "Pid", default, deserialize_with = "lenient")]
        pid: Option<u32>,
    }
    #[derive(Deserialize)]
    struct Config {
        #[serde(rename = "Image", default, deserialize_with = "lenient")]
        image: Option<String>,
    }
    #[derive(Deserialize)]
    struct Network {
        #[serde(rename = "SandboxKey", default, deserialize_with = "lenient")]
        sandbox: Option<String>,
    }
    let answer: Answer = parse(body)?;
    let pid = answer.state.and_then(|state| state.pid);
    let name = answer.name.unwrap_or_default();
    Ok(Inspected {
        pid: pid.ok_or("the answer has no process id (State.Pid)")?,
        name: bounded(name.strip_prefix('/').unwrap_or(&name)),
        image: answer
            .config
            .and_then(|config| config.image)
            .map(|image| bounded(&image)),
        sandbox: answer
            .network
            .and_then(|network| network.sandbox)
            .filter(|key| Path::new(key).is_absolute() && key.len() <= LONGEST_NAME),
    })
}

/// `name` as it is, unless nobody would want it whole.
fn bounded(name: &str) -> String {
    if name.len() <= LONGEST_NAME {
        return name.to_owned();
    }
    format!("{}…", &name[..name.floor_char_boundary(LONGEST_NAME)])
}

/// One line of `/events`.
pub(super) fn event(line: &[u8]) -> Result<Event, String> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(rename = "Type", default, deserialize_with = "lenient")]
        kind: Option<String>,
        #[serde(rename = "Action", default, deserialize_with = "lenient")]
        action: Option<String>,
        #[serde(rename = "Actor", default, deserialize_with = "lenient")]
        actor: Option<Actor>,
    }
    #[derive(Deserialize)]
    struct Actor {
        #[serde(rename = "ID", default, deserialize_with = "lenient")]
        id: Option<String>,
        #[serde(rename = "Attributes", default, deserialize_with = "lenient")]
        attributes: Option<Attributes>,
    }
    #[derive(Deserialize)]
    struct Attributes {
        #[serde(default, deserialize_with = "lenient")]
        name: Option<String>,
        #[serde(default, deserialize_with = "lenient")]
        image: Option<String>,
    }
    let answer: Answer = parse(line).map_err(|why| format!("in the stream of events {why}"))?;
    let (id, attributes) = answer
        .actor
        .map_or((None, None), |actor| (actor.id, actor.attributes));
    let (name, image) = attributes.map_or((None, None), |found| (found.name, found.image));
    Ok(Event {
        kind: answer.kind,
        action: answer.action,
        id: id.filter(|id| id.len() <= LONGEST_ID),
        name: name.map(|name| bounded(&name)),
        image: image.map(|image| bounded(&image)),
    })
}

/// What an answer that tells of a failure says.
pub(super) fn failure(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Answer {
        message: String,
    }
    match parse::<Answer>(body) {
        Ok(answer) => excerpt(answer.message.as_bytes()),
        Err(_) => excerpt(body),
    }
}

/// `body` as JSON; an error tells what is there instead.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_str(&text(body)).map_err(|error| {
        let (what, begins) = match error.is_data() {
            true => ("the answer is not what it should be", String::new()),
            false => ("the answer is no JSON", excerpt(body)),
        };
        if begins.is_empty() {
            format!("{what} ({error})")
        } else {
            format!("{what} ({error}); it begins with {begins:?}")
        }
    })
}

/// `body` as text that loses nothing: a byte that is not UTF-8 becomes `\xNN` in
/// the strings of the JSON that it is in.
fn text(body: &[u8]) -> Cow<'_, str> {
    match str::from_utf8(body) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => Cow::Owned(lossless_with(body, "\\\\x")),
    }
}

/// The beginning of what should have been an answer.
fn excerpt(body: &[u8]) -> String {
    let (body, more) = match body.get(..EXCERPT) {
        Some(start) if body.len() > EXCERPT => (start, "…"),
        _ => (body, ""),
    };
    format!("{}{more}", lossless(body.trim_ascii()))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::Index};
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_version_to_speak_is_the_older_one() {
        let api = |text: &str| version(text.as_bytes()).map(|version| version.api);
        assert_eq!(api(r#"{"ApiVersion":"1.47"}"#), Ok("1.47".to_owned()));
        assert_eq!(api(r#"{"ApiVersion":"1.99"}"#), Ok("1.53".to_owned()));
        assert_eq!(api(r#"{"ApiVersion":"2.0"}"#), Ok("1.53".to_owned()));
        for odd in ["{}", r#"{"ApiVersion":7}"#, r#"{"ApiVersion":"../x.y"}"#] {
            let why = api(odd).unwrap_err();
            assert!(why.contains("is this a container engine"), "{why}");
        }
        let why = api("<html>no</html>").unwrap_err();
        assert!(why.contains("<html>no"), "{why}");
        let podman = version(br#"{"ApiVersion":"1.41","Components":[{"Name":"Podman Engine"}]}"#);
        assert_eq!(podman.map(|version| version.runtime), Ok("podman"));
    }

    #[test]
    fn one_odd_entry_hides_no_other() {
        let found = ids(br#"[{"Id":"a1","x":[{}]},{"Id":7},null,{"Id":"../b"},{},{"Id":"c"}]"#);
        let found = found.expect("a list");
        assert_eq!(found.ids, ["a1", "c"]);
        assert_eq!(found.odd, 4);
        assert_eq!(ids(b"null"), Ok(Ids::default()));
        assert!(ids(b"{}").is_err());
        let many = vec![r#"{"Id":"a"}"#; MOST_CONTAINERS + 1].join(",");
        let why = ids(format!("[{many}]").as_bytes()).unwrap_err();
        assert!(why.contains("more than 20000"), "{why}");
    }

    #[test]
    fn a_list_is_no_container() {
        let found = ids(br#"[["a"], {"Id": "b"}]"#).expect("a list");
        assert_eq!((found.ids, found.odd), (vec!["b".to_owned()], 1));
    }

    #[test]
    fn ids_cannot_lead_elsewhere() {
        for odd in ["", ".", "..", "a/b", "a?b", "a b", "a\r\nb", "%2e", "é"] {
            assert!(!is_id(odd), "{odd:?}");
        }
        assert!(is_id("web.1_a-b"));
        assert!(!is_id(&"a".repeat(LONGEST_ID + 1)));
    }

    #[test]
    fn bytes_that_are_no_text_are_kept_readable() {
        let body = b"{\"Name\":\"/a\xff\",\"State\":{\"Pid\":7}}";
        let found = inspected(body).expect("a container");
        assert_eq!((found.name.as_str(), found.pid), ("a\\xff", 7));
    }

    #[test]
    fn odd_fields_are_missing_ones_and_a_process_there_must_be() {
        let body = br#"{"Name":["x"],"State":{"Pid":3},"Config":7,
            "NetworkSettings":{"SandboxKey":"relative/path"}}"#;
        let expected = Inspected {
            pid: 3,
            ..Inspected::default()
        };
        assert_eq!(inspected(body), Ok(expected));
        for pid in ["-1", "4294967296", "null", "\"7\"", "1.5"] {
            let body = format!(r#"{{"State":{{"Pid":{pid}}}}}"#);
            let why = inspected(body.as_bytes()).unwrap_err();
            assert!(why.contains("State.Pid"), "{why}");
        }
        let long = format!(
            r#"{{"Name":"/{}","State":{{"Pid":3}}}}"#,
            "é".repeat(1 << 20)
        );
        let name = inspected(long.as_bytes()).expect("a container").name;
        assert!(name.len() <= LONGEST_NAME + 3 && name.ends_with("é…"));
    }

    #[test]
    fn an_event_tells_the_name_and_odd_attributes_are_missing_ones() {
        let body = br#"{"Type":"container","Action":"create","Actor":{"ID":"a1",
            "Attributes":{"name":"web","image":7,"other":[]}}}"#;
        let expected = Event {
            kind: Some("container".to_owned()),
            action: Some("create".to_owned()),
            id: Some("a1".to_owned()),
            name: Some("web".to_owned()),
            image: None,
        };
        assert_eq!(event(body), Ok(expected));
        let odd = event(br#"{"Actor":{"ID":"a1","Attributes":7}}"#);
        assert_eq!(
            odd.map(|event| (event.id, event.name)),
            Ok((Some("a1".to_owned()), None))
        );
    }

    #[test]
    fn a_failure_is_told_by_its_message() {
        assert_eq!(failure(br#"{"message":"no such thing"}"#), "no such thing");
        assert_eq!(failure(b"<h1>busy</h1>\n"), "<h1>busy</h1>");
        assert_eq!(failure(&[0xff; 500]).chars().last(), Some('…'));
    }

    /// Any JSON, with keys that mean something and such as do not.
    fn json() -> impl Strategy<Value = Value> {
        let keys = prop::sample::select(vec![
            "Id",
            "ID",
            "Name",
            "State",
            "Pid",
            "Config",
            "Image",
            "NetworkSettings",
            "SandboxKey",
            "ApiVersion",
            "Components",
            "Type",
            "Action",
            "Actor",
            "message",
        ]);
        let key = prop_oneof![3 => keys.prop_map(str::to_owned), 1 => "(?s).{0,6}"];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "(?s).{0,40}".prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 60, 6, move |inner| {
            prop_oneof![
                vec(inner.clone(), 0..6).prop_map(Value::from),
                vec((key.clone(), inner), 0..6)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    /// What holds of every answer.
    fn understood(body: &[u8]) -> Result<(), TestCaseError> {
        if let Ok(found) = version(body) {
            prop_assert!(found.api.bytes().all(|b| b.is_ascii_digit() || b == b'.'));
        }
        if let Ok(found) = ids(body) {
            prop_assert!(found.ids.iter().all(|id| is_id(id)));
        }
        if let Ok(found) = inspected(body) {
            prop_assert!(found.name.len() <= LONGEST_NAME + 3);
            let sandbox = found.sandbox.unwrap_or("/".to_owned());
            prop_assert!(sandbox.starts_with('/'));
        }
        let _any = event(body);
        prop_assert!(failure(body).len() <= 4 * EXCERPT + 3);
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn any_json_is_no_panic(value in json()) {
            understood(value.to_string().as_bytes())?;
        }

        #[test]
        fn any_bytes_are_no_panic(bytes in vec(any::<u8>(), 0..200)) {
            understood(&bytes)?;
        }

        /// JSON with something wrong, in other bytes than UTF-8 too.
        #[test]
        fn changed_json_is_no_panic(
            value in json(),
            changes in vec(any::<(Index, u8)>(), 1..5),
            cut in prop::option::of(any::<Index>()),
        ) {
            let mut body = value.to_string().into_bytes();
            for (place, value) in changes {
                let at = place.index(body.len());
                body[at] = value;
            }
            if let Some(cut) = cut {
                body.truncate(cut.index(body.len()));
            }
            understood(&body)?;
        }

        /// What an engine says of a container is found among whatever else it says.
        #[test]
        fn a_container_is_read_whatever_it_is_called(
            name in "(?s).{0,60}",
            pid in 1..=u32::MAX,
            other in json(),
        ) {
            let body = json!({
                "Other": other,
                "Name": format!("/{name}"),
                "State": {"Pid": pid, "Other": other},
                "Config": other,
            });
            let found = inspected(body.to_string().as_bytes());
            let found = found.map_err(TestCaseError::fail)?;
            prop_assert_eq!(found.name, name);
            prop_assert_eq!(found.pid, pid);
        }

        /// One entry that is none hides no other.
        #[test]
        fn all_ids_are_found_among_others(
            entries in vec(prop_oneof![
                "[a-z0-9]{1,64}".prop_map(|id| json!({"Id": id})),
                json(),
            ], 0..8),
        ) {
            let good = |entry: &Value| entry["Id"].as_str().is_some_and(is_id);
            let expected = entries.iter().filter(|entry| good(entry)).count();
            let body = Value::from(entries.clone()).to_string();
            let found = ids(body.as_bytes()).map_err(TestCaseError::fail)?;
            prop_assert_eq!(found.ids.len(), expected);
            prop_assert_eq!(found.odd, entries.len() - expected);
        }
    }
}
