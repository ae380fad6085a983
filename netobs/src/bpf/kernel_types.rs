//! What this kernel's structures look like, by its own BTF.

use std::{collections::BTreeMap, ops::Range, path::Path};

use anyhow::Context as _;
use netobs_common::routes::{ABSENT, Field};

/// Where the kernel shows its types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Structures inside structures: the kernel's are some five deep.
const DEEPEST: u32 = 32;
/// Types that the way to a field may lead through.
const MOST_STEPS: u32 = 100_000;

/// `BTF_MAGIC`, and the kinds of types that are looked at.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/btf.h>
const MAGIC: u32 = 0xeb9f;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const TYPE_TAG: u32 = 18;

/// The types of the running kernel, as they are in its file: there are more than a hundred
/// thousand, and some thirty are of interest.
pub struct KernelTypes {
    contents: Vec<u8>,
    /// Where each type is in `contents`, by its id less one.
    types: Vec<usize>,
    /// Ids of those that are structures.
    structures: Vec<u32>,
    /// Where the names are.
    strings: Range<usize>,
}

/// The fixed part of a type.
#[derive(Clone, Copy)]
struct Type {
    /// Where what follows it is.
    rest: usize,
    name: usize,
    kind: u32,
    /// What the kind makes of it: members have sizes of bits, or values a sign.
    flag: bool,
    /// How many members or values there are.
    count: usize,
    /// The type that it is another name of.
    target: u32,
}

impl Type {
    /// Bytes that follow; `None` for a kind that is not known.
    fn rest_len(&self) -> Option<usize> {
        Some(match self.kind {
            // What needs no more, from pointers to tags of types.
            2 | 7..=12 | 16 | TYPE_TAG => 0,
            // Integers, variables, tags of declarations.
            1 | 14 | 17 => 4,
            // Arrays.
            3 => 12,
            // Structures, unions, sections, wide enumerations.
            STRUCT | UNION | 15 | 19 => self.count * 12,
            // Enumerations, parameters.
            ENUM | 13 => self.count * 8,
            _ => return None,
        })
    }
}

/// The kernel's reasons for dropping a packet, by number, without their common
/// prefix.
#[derive(Clone, Debug, Default)]
pub struct DropReasons(BTreeMap<u32, String>);

impl FromIterator<(u32, String)> for DropReasons {
    fn from_iter<I: IntoIterator<Item = (u32, String)>>(reasons: I) -> Self {
        Self(reasons.into_iter().collect())
    }
}

impl DropReasons {
    /// The number of the reason `name`.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u32> {
        let mut all = self.0.iter();
        all.find(|(_, reason)| *reason == name)
            .map(|(number, _)| *number)
    }

    /// The name of a reason; its number where the kernel's types have no name for
    /// it, as for those of a module.
    #[must_use]
    pub fn name(&self, number: u32) -> String {
        self.0
            .get(&number)
            .cloned()
            .unwrap_or_else(|| number.to_string())
    }
}

impl KernelTypes {
    /// Reads the types at `path`, usually [`VMLINUX`].
    ///
    /// # Errors
    /// Where it cannot be read, or is no BTF.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let contents = std::fs::read(path).with_context(|| {
            format!(
                "read {} (it takes a kernel with CONFIG_DEBUG_INFO_BTF)",
                path.display()
            )
        })?;
        Self::parse(contents).with_context(|| format!("read {}", path.display()))
    }

    /// Reads the types in `contents`.
    ///
    /// # Errors
    /// Where that is no BTF.
    pub fn parse(contents: Vec<u8>) -> anyhow::Result<Self> {
        let mut types = Self {
            contents,
            types: Vec::new(),
            structures: Vec::new(),
            strings: 0..0,
        };
        types.index().context("this is no BTF")?;
        Ok(types)
    }

    /// Finds out where each type is.
    fn index(&mut self) -> Option<()> {
        let word = |at| Some(self.word(at)? as usize);
        let (magic, header) = (self.word(0)? & 0xffff, word(4)?);
        let (types, types_len) = (header.checked_add(word(8)?)?, word(12)?);
        let strings = header.checked_add(word(16)?)?;
        self.strings = strings..strings.checked_add(word(20)?)?;
        self.contents.get(self.strings.clone())?;
        let end = types.checked_add(types_len)?;
        if magic != MAGIC || end > self.contents.len() {
            return None;
        }
        let mut at = types;
        while at < end {
            let kind = self.at(at)?;
            self.types.push(at);
            if kind.kind == STRUCT {
                self.structures.push(u32::try_from(self.types.len()).ok()?);
            }
            at = kind.rest.checked_add(kind.rest_len()?)?;
        }
        (at == end).then_some(())
    }

    fn word(&self, at: usize) -> Option<u32> {
        let bytes = self.contents.get(at..at.checked_add(4)?)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    }

    /// The type that begins there.
    fn at(&self, at: usize) -> Option<Type> {
        let info = self.word(at + 4)?;
        Some(Type {
            rest: at + 12,
            name: self.word(at)? as usize,
            kind: info >> 24 & 0x1f,
            flag: info >> 31 != 0,
            count: (info & 0xffff) as usize,
            target: self.word(at + 8)?,
        })
    }

    /// The type `id`; 0 is none.
    fn get(&self, id: u32) -> Option<Type> {
        self.at(*self.types.get((id as usize).checked_sub(1)?)?)
    }

    fn name(&self, offset: usize) -> Option<&[u8]> {
        let from = self.contents[self.strings.clone()].get(offset..)?;
        from.split(|byte| *byte == 0).next()
    }

    /// Whether that is the name at `offset`: to look for one among thousands without
    /// reading each to its end.
    fn is_name(&self, offset: usize, name: &[u8]) -> bool {
        let from = self.contents[self.strings.clone()].get(offset..);
        let rest = from.and_then(|from| from.strip_prefix(name));
        rest.is_some_and(|rest| rest.first().is_none_or(|byte| *byte == 0))
    }

    /// The offset of `field` in bytes; [`ABSENT`] for one that is optional.
    ///
    /// # Errors
    /// With the name of a field that is missing.
    pub fn offset(&self, field: &Field) -> Result<u32, String> {
        let missing = || {
            if field.optional {
                Ok(ABSENT)
            } else {
                Err(format!("{}.{}", field.structure, field.path))
            }
        };
        let mut steps = MOST_STEPS;
        self.structure(field.structure)
            .and_then(|id| self.find(id, field.path, DEEPEST, &mut steps))
            .map_or_else(missing, Ok)
    }

    /// The offset of `path` (names with dots between) in the type `id`.
    fn find(&self, id: u32, path: &str, depth: u32, steps: &mut u32) -> Option<u32> {
        let depth = depth.checked_sub(1)?;
        *steps = steps.checked_sub(1)?;
        let outer = self.get(id)?;
        match outer.kind {
            STRUCT | UNION => {}
            TYPEDEF | CONST | VOLATILE | TYPE_TAG => {
                return self.find(outer.target, path, depth, steps);
            }
            _ => return None,
        }
        let (name, rest) = match path.split_once('.') {
            Some((name, rest)) => (name, Some(rest)),
            None => (path, None),
        };
        (0..outer.count).find_map(|number| {
            let member = outer.rest + number * 12;
            let bits = self.word(member + 8)?;
            let (bits, width) = match outer.flag {
                true => (bits & 0xff_ffff, bits >> 24),
                false => (bits, 0),
            };
            // Else it is a few bits of something.
            let start = (bits % 8 == 0 && width == 0).then_some(bits / 8)?;
            let target = self.word(member + 4)?;
            let inside = match (self.name(self.word(member)? as usize)?, rest) {
                (b"", _) => self.find(target, path, depth, steps)?,
                (found, _) if found != name.as_bytes() => return None,
                (_, Some(rest)) => self.find(target, rest, depth, steps)?,
                (_, None) => 0,
            };
            start.checked_add(inside)
        })
    }

    /// Functions and structures may share a name.
    fn structure(&self, name: &str) -> Option<u32> {
        let is_called = |id: &u32| {
            let found = self.get(*id);
            found.is_some_and(|found| self.is_name(found.name, name.as_bytes()))
        };
        self.structures.iter().copied().rfind(is_called)
    }

    /// The kernel's reasons for dropping a packet. None before Linux 5.17.
    #[must_use]
    pub fn drop_reasons(&self) -> DropReasons {
        let mut all = self.types.iter().filter_map(|at| self.at(*at));
        let reasons =
            all.find(|found| found.kind == ENUM && self.is_name(found.name, b"skb_drop_reason"));
        let value = |(reasons, number): (Type, usize)| {
            let at = reasons.rest + number * 8;
            let name = str::from_utf8(self.name(self.word(at)? as usize)?).ok()?;
            let name = name.strip_prefix("SKB_DROP_REASON_")?;
            let value = self.word(at + 4)?;
            // Below zero there is none.
            let known = !reasons.flag || value <= i32::MAX.cast_unsigned();
            known.then(|| (value, name.to_owned()))
        };
        let values = reasons.into_iter();
        values
            .flat_map(|reasons| (0..reasons.count).map(move |number| (reasons, number)))
            .filter_map(value)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use btfparse::{Offset, Readable, TypeInformation};
    use netobs_common::routes::{FIELDS_DROP, FIELDS_IPV4, FIELDS_IPV6};
    use proptest::{collection::vec, prelude::*, sample::Index};

    use super::*;

    #[test]
    fn what_is_no_btf_is_an_error_and_no_panic() {
        for bytes in [
            Vec::new(),
            vec![0; 3],
            vec![0xff; 64],
            b"\x9f\xeb\x01\x00\x18\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\x7f".to_vec(),
        ] {
            assert!(KernelTypes::parse(bytes).is_err());
        }
    }

    #[test]
    fn reasons_without_a_name_are_numbers() {
        let reasons: DropReasons = [(88, "IP_INNOROUTES".to_owned())].into_iter().collect();
        assert_eq!(reasons.name(88), "IP_INNOROUTES");
        assert_eq!(reasons.name(65_537), "65537");
        assert_eq!(reasons.number("IP_INNOROUTES"), Some(88));
        assert_eq!(reasons.number("IP_RPFILTER"), None);
    }

    /// Every kernel that tests run on shows its types.
    #[test]
    fn finds_fields_and_reasons_of_the_running_kernel() {
        let contents = std::fs::read(VMLINUX).expect("the kernel's types");
        let types = KernelTypes::parse(contents).expect("the kernel's own types");
        let field = |structure, path, optional| Field {
            global: "",
            structure,
            path,
            optional,
        };
        // Its first member, on every kernel since there is one.
        assert_eq!(types.offset(&field("fib_nh", "nh_common", false)), Ok(0));
        let missing = types.offset(&field("net", "no_such_field", false));
        assert_eq!(missing, Err("net.no_such_field".to_owned()));
        let missing = types.offset(&field("no_such_struct", "field", true));
        assert_eq!(missing, Ok(ABSENT));
        assert_eq!(types.drop_reasons().name(u32::MAX), u32::MAX.to_string());
    }

    /// Fields of structures that are among the first of a kernel's types, with
    /// structures inside them.
    const EARLY: [Field; 3] = [
        early("list_head", "next"),
        early("task_struct", "se.load.weight"),
        early("task_struct", "tasks.prev"),
    ];

    const fn early(structure: &'static str, path: &'static str) -> Field {
        Field {
            global: "",
            structure,
            path,
            optional: false,
        }
    }

    /// What netobs asks of the types, whatever they are: how many of the fields
    /// there are.
    fn asked(contents: Vec<u8>) -> usize {
        let Ok(types) = KernelTypes::parse(contents) else {
            return 0;
        };
        let _any = types.drop_reasons();
        let all = FIELDS_IPV4.iter().chain(&FIELDS_IPV6).chain(&FIELDS_DROP);
        let there = |field: &&Field| types.offset(field).is_ok_and(|offset| offset != ABSENT);
        all.chain(&EARLY).filter(there).count()
    }

    /// The kernel's own types, the first `count` of them only: quick to read.
    fn beginning(whole: &[u8], count: usize) -> Vec<u8> {
        let number = |at: usize| {
            let bytes = whole[at..at + 4].try_into().expect("four bytes");
            u32::from_ne_bytes(bytes) as usize
        };
        let (header, types, strings, strings_len) = (number(4), number(8), number(16), number(20));
        let mut end = header + types;
        for _ in 0..count {
            let info = number(end + 4);
            let (members, kind) = (info & 0xffff, info >> 24 & 0x1f);
            // What follows a type, by its kind.
            // https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/btf.h
            end += 12
                + match kind {
                    1 | 14 | 17 => 4,
                    3 => 12,
                    4 | 5 | 15 | 19 => 12 * members,
                    6 | 13 => 8 * members,
                    _ => 0,
                };
        }
        let types_len = end - header - types;
        let mut cut = whole[..header].to_vec();
        for (at, value) in [(8, 0), (12, types_len), (16, types_len), (20, strings_len)] {
            let value = u32::try_from(value).expect("a small number");
            cut[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        cut.extend(&whole[header + types..end]);
        cut.extend(&whole[header + strings..header + strings + strings_len]);
        cut
    }

    /// A structure without a name for its only member, which is of type `member`, and
    /// what is `after` it.
    fn nested(member: u32, after: &[u32]) -> Vec<u8> {
        const STRUCT: u32 = 4 << 24 | 1;
        let mut types = vec![1, STRUCT, 8, 0, member, 0];
        types.extend(after);
        let len = u32::try_from(types.len() * 4).expect("a small number");
        let mut bytes = b"\x9f\xeb\x01\x00\x18\x00\x00\x00".to_vec();
        for number in [0, len, len, 5].into_iter().chain(types) {
            bytes.extend(number.to_ne_bytes());
        }
        bytes.extend(b"\0net\0");
        bytes
    }

    #[test]
    fn circles_are_an_error_and_no_overflow() {
        const TYPEDEF: u32 = 8 << 24;
        let field = early("net", "ns.inum");
        for bytes in [
            nested(1, &[]),
            nested(2, &[1, TYPEDEF, 2]),
            nested(2, &[1, TYPEDEF, 3, 1, TYPEDEF, 2]),
            nested(2, &[1, TYPEDEF, 1]),
        ] {
            if let Ok(types) = KernelTypes::parse(bytes) {
                assert_eq!(types.offset(&field), Err("net.ns.inum".to_owned()));
            }
        }
    }

    /// A file that has been read.
    struct Contents(Vec<u8>);

    impl Readable for Contents {
        fn read(&self, offset: u64, buffer: &mut [u8]) -> btfparse::Result<()> {
            let start = usize::try_from(offset).expect("a small number");
            buffer.copy_from_slice(&self.0[start..start + buffer.len()]);
            Ok(())
        }
    }

    /// Another reader of the same types.
    #[test]
    fn offsets_are_those_that_btfparse_tells() {
        let types = KernelTypes::parse(kernels_own()).expect("the kernel's own types");
        let other = TypeInformation::new(&Contents(kernels_own())).expect("the same");
        let mut known = 0;
        for field in FIELDS_IPV4.iter().chain(&FIELDS_IPV6).chain(&FIELDS_DROP) {
            let Some(id) = types.structure(field.structure) else {
                continue;
            };
            let told = match other.offset_of(id, field.path) {
                Ok((_, Offset::ByteOffset(offset))) => Some(offset),
                _ => None,
            };
            let ours = types.offset(field).ok().filter(|offset| *offset != ABSENT);
            assert_eq!(ours, told, "{}.{}", field.structure, field.path);
            known += usize::from(told.is_some());
        }
        assert!(known > 40, "{known}");
    }

    fn kernels_own() -> Vec<u8> {
        std::fs::read(VMLINUX).expect("the kernel's types")
    }

    /// Where something is changed: small numbers are the header and the first types.
    fn changes() -> impl Strategy<Value = Vec<(Index, bool, u8)>> {
        vec(any::<(Index, bool, u8)>(), 1..12)
    }

    fn changed(mut bytes: Vec<u8>, changes: &[(Index, bool, u8)], cut: Option<Index>) -> Vec<u8> {
        for (place, front, value) in changes {
            let range = if *front { 64 } else { bytes.len() };
            bytes[place.index(range)] = *value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes
    }

    #[test]
    fn a_beginning_of_the_kernels_types_is_read_like_the_whole() {
        let whole = kernels_own();
        assert!(asked(whole.clone()) > 40);
        assert!(asked(beginning(&whole, 3000)) >= EARLY.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        /// Whatever is wrong; most of it is noticed early.
        #[test]
        fn changed_types_are_no_panic(
            changes in changes(),
            cut in proptest::option::weighted(0.3, any::<Index>()),
        ) {
            asked(changed(SMALL.clone(), &changes, cut));
        }

        /// Types that mean other types: circles, and members that are no members.
        #[test]
        fn types_that_lead_elsewhere_are_no_panic(
            ids in vec((any::<Index>(), 0..3000u32), 1..40),
        ) {
            let mut bytes = SMALL.clone();
            for (place, id) in ids {
                // Types come before the strings, some 110 kB of them.
                let at = 24 + 4 * place.index(28_000);
                bytes[at..at + 4].copy_from_slice(&id.to_ne_bytes());
            }
            asked(bytes);
        }

        #[test]
        fn bytes_are_no_panic(types in vec(any::<u8>(), 0..2000), strings in 0..64u32) {
            let len = u32::try_from(types.len()).expect("a small number") & !3;
            let mut bytes = b"\x9f\xeb\x01\x00\x18\x00\x00\x00".to_vec();
            for number in [0, len, len, strings] {
                bytes.extend(number.to_le_bytes());
            }
            bytes.extend(types);
            asked(bytes);
        }
    }

    /// The kernel's first types.
    static SMALL: LazyLock<Vec<u8>> = LazyLock::new(|| beginning(&kernels_own(), 3000));

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn all_types_of_the_kernel_changed_are_no_panic(
            ids in vec((any::<Index>(), 0..100_000u32), 1..20),
        ) {
            let mut bytes = kernels_own();
            let words = bytes.len() / 4 - 6;
            for (place, id) in ids {
                let at = 24 + 4 * place.index(words);
                bytes[at..at + 4].copy_from_slice(&id.to_ne_bytes());
            }
            asked(bytes);
        }
    }
}
