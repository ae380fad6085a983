//! What was answered before: bcrypt is slow on purpose, and scrapers ask for ever.

use std::collections::VecDeque;

use sha2::{Digest as _, Sha256};

use super::auth::USERS;

/// Answers of each kind that are remembered: every user's at least.
const REMEMBERED: usize = USERS;

/// A user, a password and the hash of it that was asked about. Nobody outside knows
/// the hash, so that how long it takes to find one tells nothing.
pub(super) type Asked = [u8; 32];

/// What was answered. Apart, so that no number of wrong passwords makes a right one
/// be forgotten.
#[derive(Default)]
pub(super) struct Answers {
    admitted: VecDeque<Asked>,
    refused: VecDeque<Asked>,
}

impl Answers {
    pub(super) fn find(&self, asked: &Asked) -> Option<bool> {
        if self.admitted.contains(asked) {
            return Some(true);
        }
        self.refused.contains(asked).then_some(false)
    }

    pub(super) fn keep(&mut self, asked: Asked, admitted: bool) {
        let answers = if admitted {
            &mut self.admitted
        } else {
            &mut self.refused
        };
        if answers.len() == REMEMBERED {
            answers.pop_front();
        }
        answers.push_back(asked);
    }
}

/// The question in short.
pub(super) fn asked(user: &[u8], password: &[u8], hash: &str) -> Asked {
    let mut digest = Sha256::new();
    for part in [user, password, hash.as_bytes()] {
        // Lengths, so that no two questions are the same bytes.
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_remembered_and_bounded() {
        let mut answers = Answers::default();
        let right = asked(b"user", b"right", "hash");
        answers.keep(right, true);
        for number in 0..3 * REMEMBERED {
            answers.keep(asked(b"user", number.to_string().as_bytes(), "hash"), false);
        }
        assert_eq!(answers.refused.len(), REMEMBERED);
        // Guesses do not push it out.
        assert_eq!(answers.find(&right), Some(true));
        assert_eq!(answers.find(&asked(b"user", b"0", "hash")), None);
        let last = (3 * REMEMBERED - 1).to_string();
        assert_eq!(
            answers.find(&asked(b"user", last.as_bytes(), "hash")),
            Some(false)
        );
    }

    #[test]
    fn no_two_questions_are_the_same() {
        assert_ne!(asked(b"ab", b"c", "h"), asked(b"a", b"bc", "h"));
        assert_ne!(asked(b"a", b"b", "h"), asked(b"a", b"b", "i"));
    }
}
