//! What this kernel's structures look like, by its own BTF.

use std::{collections::BTreeMap, path::Path};

use anyhow::Context as _;
use btfparse::{Integer32Value, Offset, Readable, TypeInformation, TypeVariant};
use netobs_common::routes::{ABSENT, Field};

/// Where the kernel shows its types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// The types of the running kernel.
pub struct KernelTypes(TypeInformation);

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

/// A file that has been read.
struct Contents(Vec<u8>);

impl Readable for Contents {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> btfparse::Result<()> {
        let short = || btfparse::Error::new(btfparse::ErrorKind::IOError, "the file ends early");
        let start = usize::try_from(offset).map_err(|_| short())?;
        let end = start.checked_add(buffer.len()).ok_or_else(short)?;
        buffer.copy_from_slice(self.0.get(start..end).ok_or_else(short)?);
        Ok(())
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
        TypeInformation::new(&Contents(contents))
            .map(Self)
            .map_err(|error| anyhow::anyhow!("this is no BTF: {error:?}"))
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
        let Some(id) = self.structure(field.structure) else {
            return missing();
        };
        match self.0.offset_of(id, field.path) {
            Ok((_, Offset::ByteOffset(offset))) => Ok(offset),
            Ok((_, Offset::BitOffsetAndSize(..))) | Err(_) => missing(),
        }
    }

    /// Functions and structures may share a name, and the map of names keeps the
    /// last of each.
    fn structure(&self, name: &str) -> Option<u32> {
        let is_structure = |kind: &TypeVariant| matches!(kind, TypeVariant::Struct(_));
        let usual = self.0.id_of(name)?;
        if self.0.get().get(&usual).is_some_and(is_structure) {
            return Some(usual);
        }
        self.0
            .get()
            .iter()
            .find(|(id, kind)| is_structure(kind) && self.0.name_of(**id).as_deref() == Some(name))
            .map(|(id, _)| *id)
    }

    /// The kernel's reasons for dropping a packet. None before Linux 5.17.
    #[must_use]
    pub fn drop_reasons(&self) -> DropReasons {
        let Some(TypeVariant::Enum(reasons)) = self
            .0
            .id_of("skb_drop_reason")
            .and_then(|id| self.0.from_id(id))
        else {
            return DropReasons::default();
        };
        reasons
            .named_value_list()
            .iter()
            .filter_map(|reason| {
                let name = reason.name.strip_prefix("SKB_DROP_REASON_")?;
                let number = match reason.value {
                    Integer32Value::Unsigned(number) => number,
                    Integer32Value::Signed(number) => u32::try_from(number).ok()?,
                };
                Some((number, name.to_owned()))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn random_bytes_behind_a_header_are_an_error_and_no_panic() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..2000 {
            let mut bytes = b"\x9f\xeb\x01\x00\x18\x00\x00\x00".to_vec();
            let types = random.u32(0..256) & !3;
            for number in [0, types, types, random.u32(0..64)] {
                bytes.extend(number.to_le_bytes());
            }
            bytes.extend(std::iter::repeat_with(|| random.u8(..)).take(320));
            // Whether it parses is chance.
            let _ = KernelTypes::parse(bytes);
        }
    }
}
