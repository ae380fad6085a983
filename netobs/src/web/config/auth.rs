//! Who may ask: basic authentication with bcrypt hashes.

use std::{
    collections::HashMap,
    str::FromStr as _,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{anyhow, bail};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bcrypt::HashParts;

use super::{
    answers::{Answers, asked},
    schema::Pairs,
};

/// Most users. For more, certificates or a proxy in front are the better way.
pub(super) const USERS: usize = 256;
/// Longest value of an Authorization header.
const HEADER_BYTES: usize = 8 << 10;
/// Costs that are borne: the highest takes half a minute, each further one twice that.
const COSTS: std::ops::RangeInclusive<u32> = 4..=18;
/// bcrypt runs once at a time, so that who guesses has one CPU and not all of them.
static TURN: Mutex<()> = Mutex::new(());

/// Who may ask, by the hash of their password.
pub(super) struct Users {
    hashes: HashMap<Vec<u8>, String>,
    /// What a user who is not there is compared with: it takes as long.
    nobody: String,
    answers: Mutex<Answers>,
}

impl Users {
    /// Those that the file says.
    pub(super) fn new(said: Pairs) -> anyhow::Result<Self> {
        let mut hashes = HashMap::new();
        let mut highest = *COSTS.start();
        for (user, hash) in said {
            let cost = cost(&user, hash.value()).and_then(|cost| {
                if hashes.len() == USERS {
                    bail!("more than {USERS} users: use client certificates, or a proxy");
                }
                Ok(cost)
            });
            let cost = cost.map_err(|why| hash.problem(format!("basic_auth_users.{user}"), why))?;
            highest = highest.max(cost);
            hashes.insert(user.into_bytes(), hash.value().clone());
        }
        Ok(Self {
            hashes,
            nobody: unmatched(highest),
            answers: Mutex::default(),
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether `user` is there and has this `password`.
    pub(super) fn admit(&self, user: &[u8], password: &[u8]) -> bool {
        let known = self.hashes.get(user);
        let hash = known.unwrap_or(&self.nobody);
        let asked = asked(user, password, hash);
        if let Some(answer) = self.answers().find(&asked) {
            return answer;
        }
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody may have asked the same while we waited.
        if let Some(answer) = self.answers().find(&asked) {
            return answer;
        }
        let matches = bcrypt::verify(password, hash).unwrap_or(false);
        let admitted = matches && known.is_some();
        self.answers().keep(asked, admitted);
        admitted
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What `user`'s hash costs, where both are such that they can be used.
fn cost(user: &str, hash: &str) -> anyhow::Result<u32> {
    if user.contains(':') {
        bail!("a name with a colon cannot be sent by basic authentication");
    }
    let parts = HashParts::from_str(hash).map_err(|error| {
        anyhow!("not a bcrypt hash ({error}): make one by htpasswd -nBC 10 \"\" | tr -d ':\\n'")
    })?;
    let cost = parts.get_cost();
    if !COSTS.contains(&cost) {
        let (least, most) = COSTS.into_inner();
        bail!("a cost of {cost}, which has to be from {least} to {most}: take 10");
    }
    Ok(cost)
}

/// User and password of an Authorization header's value.
pub(super) fn parse(value: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    if value.len() > HEADER_BYTES {
        return None;
    }
    let (scheme, rest) = value.split_at_checked(b"Basic ".len())?;
    if !scheme.eq_ignore_ascii_case(b"Basic ") {
        return None;
    }
    let mut user = BASE64_STANDARD.decode(rest.trim_ascii()).ok()?;
    // The first one: a password may have colons.
    let colon = user.iter().position(|byte| *byte == b':')?;
    let password = user.split_off(colon + 1);
    user.pop();
    Some((user, password))
}

/// A hash that costs as much and that no password is known for.
fn unmatched(cost: u32) -> String {
    format!("$2b${cost:02}${}", ".".repeat(53))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::fixture::{Folder, basic, hash},
        *,
    };

    #[test]
    fn a_header_is_taken_apart() {
        let parsed = |value: &str| {
            let (user, password) = parse(value.as_bytes())?;
            Some((
                String::from_utf8(user).unwrap(),
                String::from_utf8(password).unwrap(),
            ))
        };
        let pair = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        // "a:b", "a:b:c", ":", and "ab", which has no colon.
        assert_eq!(parsed("Basic YTpi"), pair("a", "b"));
        assert_eq!(parsed("basic  YTpiOmM="), pair("a", "b:c"));
        assert_eq!(parsed("Basic Og=="), pair("", ""));
        for bad in [
            "",
            "Basic",
            "Basic ",
            "Basic YWI=",
            "Basic Og",
            "Basic Y!pi",
            "Bearer YTpi",
            "BasicYTpi",
        ] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
        let long = format!("Basic {}", "YTpi".repeat(HEADER_BYTES / 4));
        assert_eq!(parsed(&long), None);
    }

    proptest! {
        #[test]
        fn what_was_put_together_comes_apart(user in "[^:]{0,40}", password in ".{0,40}") {
            let value = BASE64_STANDARD.encode(format!("{user}:{password}"));
            let value = format!("BASIC {value}");
            prop_assert_eq!(
                parse(value.as_bytes()),
                Some((user.into_bytes(), password.into_bytes()))
            );
        }

        #[test]
        fn no_bytes_are_too_odd(value in prop::collection::vec(any::<u8>(), 0..100)) {
            let _whatever = parse(&value);
            let _whatever = parse(&[b"Basic ", value.as_slice()].concat());
        }
    }

    #[test]
    fn nobody_has_a_hash_of_that_cost() {
        for cost in COSTS {
            let parts = HashParts::from_str(&unmatched(cost)).expect("well formed");
            assert_eq!(parts.get_cost(), cost);
        }
        assert!(!bcrypt::verify("", &unmatched(4)).expect("well formed"));
    }

    #[test]
    fn whoever_is_not_known_stays_outside() {
        let folder = Folder::new();
        let text = format!(
            "basic_auth_users:\n  alice: {}\n  bob: {}\n",
            hash("a"),
            hash("b:c")
        );
        let config = folder.accepted(&text);
        // From memory the second time.
        for _ in 0..2 {
            assert!(config.admits(Some(&basic("alice", "a"))));
            assert!(config.admits(Some(&basic("bob", "b:c"))));
            assert!(!config.admits(Some(&basic("alice", "b:c"))));
            assert!(!config.admits(Some(&basic("alice", ""))));
            assert!(!config.admits(Some(&basic("Alice", "a"))));
            assert!(!config.admits(Some(&basic("", ""))));
            assert!(!config.admits(Some(b"Basic YWxpY2U6Y!==")));
            assert!(!config.admits(Some(b"Bearer a")));
            assert!(!config.admits(Some(b"")));
            assert!(!config.admits(None));
        }
    }

    /// By the crypt of libxcrypt: `perl -e 'print crypt("secret", "$2y$05$...")'`.
    #[test]
    fn hashes_of_other_tools_are_understood() {
        let folder = Folder::new();
        let accepts = |hash: &str, password: &str| {
            let config = folder.accepted(&format!("basic_auth_users:\n  alice: {hash}\n"));
            config.admits(Some(&basic("alice", password)))
        };
        let rest = "$05$0123456789abcdefghijku39agN4Mu6/ZCrUqW6TSEmPfsDXeOB6q";
        for prefix in ["$2y", "$2a", "$2b"] {
            let hash = format!("{prefix}{rest}");
            assert!(accepts(&hash, "secret"), "{prefix}");
            assert!(!accepts(&hash, "Secret"), "{prefix}");
        }
        // No bcrypt looks at more than 72 bytes.
        let long = format!("p\u{e4}ss{}", "x".repeat(80));
        let hash = "$2y$05$0123456789abcdefghijku4O.jifhWV7I5a5U.7nSnpsz1mIDNjaO";
        assert!(accepts(hash, &long));
        assert!(accepts(hash, &long[..72]));
        assert!(!accepts(hash, &long[..71]));
    }

    #[test]
    fn no_more_users_than_can_be_remembered() {
        let folder = Folder::new();
        let hash = hash("a");
        let users = |count| {
            let lines = (0..count).map(|n| format!("  user{n}: {hash}\n"));
            format!("basic_auth_users:\n{}", lines.collect::<String>())
        };
        assert!(folder.accepted(&users(256)).has_users());
        assert!(folder.refused(&users(257)).contains("more than 256 users"));
    }

    #[test]
    fn costs_that_nobody_can_bear() {
        let folder = Folder::new();
        let hash = hash("a");
        for cost in ["03", "19", "31"] {
            let hash = hash.replace("$04$", &format!("${cost}$"));
            let said = folder.refused(&format!("basic_auth_users:\n  a: {hash}\n"));
            assert!(said.contains("has to be from 4 to 18"), "{said}");
            assert!(!said.contains(&hash), "{said}");
        }
    }

    #[test]
    fn nobody_costs_what_the_most_expensive_user_does() {
        let cheap = hash("a");
        let dear = cheap.replace("$04$", "$06$");
        let text = format!("basic_auth_users:\n  a: {cheap}\n  b: {dear}\n  c: {cheap}\n");
        let users = Folder::new().accepted(&text).users;
        let nobody = HashParts::from_str(&users.nobody).expect("well formed");
        assert_eq!(nobody.get_cost(), 6);
    }
}
