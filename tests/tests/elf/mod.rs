//! eBPF programs of others, made here: a name of our choice, and a constant for a
//! verdict.
#![allow(dead_code, reason = "each test uses a part of it")]

use anyhow::Context as _;
use aya::{
    Ebpf,
    programs::{LinkOrder, SchedClassifier, TcAttachType, Xdp, XdpMode, tc::TcAttachOptions},
};
use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
    write::{Object, Symbol, SymbolSection},
};

/// `TCX_NEXT` and `TC_ACT_UNSPEC`: on to the next one.
pub(crate) const NEXT: i32 = -1;
/// `TC_ACT_SHOT`.
pub(crate) const SHOT: i32 = 2;
/// `XDP_DROP`.
pub(crate) const XDP_DROP: i32 = 1;
/// `XDP_PASS`.
pub(crate) const XDP_PASS: i32 = 2;

/// An object with one program in `section`.
fn object(section: &str, name: &str, verdict: i32) -> anyhow::Result<Vec<u8>> {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let license = object.add_section(Vec::new(), b"license".to_vec(), SectionKind::Data);
    object.set_section_data(license, b"GPL\0", 1);
    let text = object.add_section(Vec::new(), section.into(), SectionKind::Text);
    let [a, b, c, d] = verdict.to_le_bytes();
    // r0 = verdict; exit
    let code = [0xb7, 0, 0, 0, a, b, c, d, 0x95, 0, 0, 0, 0, 0, 0, 0];
    object.set_section_data(text, code.to_vec(), 8);
    object.add_symbol(Symbol {
        name: name.into(),
        value: 0,
        size: code.len() as u64,
        kind: SymbolKind::Text,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Section(text),
        flags: SymbolFlags::None,
    });
    Ok(object.write()?)
}

/// A program that is loaded, and attached for as long as this lives.
pub(crate) struct Neighbour {
    /// The kernel's id.
    pub(crate) id: u32,
    _ebpf: Ebpf,
}

/// Loads `name` and hangs it first into the TCX chain of an interface of this
/// thread's namespace.
pub(crate) fn tcx(
    name: &str,
    verdict: i32,
    interface: &str,
    hook: TcAttachType,
) -> anyhow::Result<Neighbour> {
    let mut ebpf = Ebpf::load(&object("classifier", name, verdict)?)?;
    let program: &mut SchedClassifier = ebpf.program_mut(name).context("it")?.try_into()?;
    program.load()?;
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    program.attach_with_options(interface, hook, order)?;
    let id = program.info()?.id();
    Ok(Neighbour { id, _ebpf: ebpf })
}

/// Loads `name` and hangs it on an interface of this thread's namespace.
pub(crate) fn xdp(
    name: &str,
    verdict: i32,
    interface: &str,
    mode: XdpMode,
) -> anyhow::Result<Neighbour> {
    let mut ebpf = Ebpf::load(&object("xdp", name, verdict)?)?;
    let program: &mut Xdp = ebpf.program_mut(name).context("it")?.try_into()?;
    program.load()?;
    program.attach(interface, mode)?;
    let id = program.info()?.id();
    Ok(Neighbour { id, _ebpf: ebpf })
}
